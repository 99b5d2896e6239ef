"""Write down what libraries give: `python tests/project/migration/record.py [NAME...]`."""

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from project.migration import case, libraries


def main() -> None:
    numbers = case.recorded()
    for name, library in libraries.LIBRARIES.items():
        if not library.module or name not in (sys.argv[1:] or libraries.LIBRARIES):
            continue
        try:
            module = library.load()
        except ImportError as error:
            print(f"{name}: kept, for {error}")
            continue
        version = importlib.metadata.version(name)
        results = {each.key: library.compute(each, module) for each in library.cases}
        numbers[name] = {"version": version, "cases": results}
        print(f"{name} {version}: {len(results)} cases")
    case.write(numbers)


if __name__ == "__main__":
    main()
