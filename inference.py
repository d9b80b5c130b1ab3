"""Which dance is it?  python3 inference.py --videopath inference.mp4  (--help lists the rest)"""
import os, sys
from pathlib import Path

if __name__ == '__main__':
    try:
        from importlib.metadata import version
        version('torch') # it is loaded later, with the model
        from kinetics_dance.inference import script
    except ModuleNotFoundError as e:
        home = Path(__file__).resolve().parent/'.venv'
        # a python3 that lacks the packages: `make env` made one that has them
        if (home/'bin/python').exists() and Path(sys.prefix).resolve() != home: os.execv(home/'bin/python', [str(home/'bin/python'), *sys.argv])
        print(f'error: {e.name} is not installed; `make env` makes an environment in .venv', file=sys.stderr)
        sys.exit(2)
    script()
