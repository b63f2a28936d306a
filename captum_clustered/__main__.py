"""``python -m captum_clustered``: the command line."""

from captum_clustered.app.cli import main

if __name__ == "__main__":
    main()
