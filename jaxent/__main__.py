"""`python -m jaxent`: train a language model, and see its loss as the code length that it is."""

import sys

try:
    from jaxent.demo.command import main
except ModuleNotFoundError as error:
    missing = (error.name or "").partition(".")[0]
    if missing not in ("matplotlib", "tqdm"):
        raise
    print(
        f'python -m jaxent: error: {missing} is missing: pip install "jaxent[demo]"',
        file=sys.stderr,
    )
    sys.exit(2)
except KeyboardInterrupt:  # Importing JAX takes a second.
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(main())
