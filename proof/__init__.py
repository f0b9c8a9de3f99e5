"""Proof: the tools that try to break Tenuto, and the judges of what they find. The product imports none of them."""
