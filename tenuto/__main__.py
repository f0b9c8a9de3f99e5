"""`python -m tenuto` is the `tenuto` command."""

from tenuto.cli import main

if __name__ == "__main__":
    main(prog_name="tenuto")
