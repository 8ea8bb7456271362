"""The command line: it parses, calls one verb and renders what comes back."""
