"""Run the command line with `python -m reviver`."""

from reviver.cli.app import main

if __name__ == "__main__":
    main()
