"""`python -m gateway`: the same as `vita-gateway`."""

from gateway.cli import main

if __name__ == "__main__":
    main()
