"""`python -m tenuto` is the `tenuto` command."""

from tenuto.cli.main import main

if __name__ == "__main__":
    main(prog_name="tenuto")
