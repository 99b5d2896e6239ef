"""`python -m jaxent`: train a language model, and see its loss as the code length that it is."""

import sys

try:
    from jaxent.demo.command import main
except ModuleNotFoundError as error:
    if error.name not in ("matplotlib", "tqdm"):
        raise
    missing = f"{error.name} is not installed; the demo needs it"
    print(f'python -m jaxent: {missing}: pip install "jaxent[demo]"', file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    sys.exit(main())
