"""`python -m trainer.cli`: the command `embtables`, for torchrun -m."""

from trainer.cli import main

if __name__ == "__main__":
    main()
