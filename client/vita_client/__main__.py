"""`python -m vita_client` is the command line `vita`."""

from vita_client.cli import main

if __name__ == "__main__":
    main()
