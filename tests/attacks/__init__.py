"""Attacks on a real `tenuto serve` by unknown peers, and by clients within their rates.

Layer: tests.

`scene` has the server, a bystander and strict viewers; `attacker` is the process that attacks. Each test names a row of
the table in `docs/security.md`. `make attack` runs the long forms.
"""
