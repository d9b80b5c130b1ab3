"Run the cells of a notebook as `nbdev_test` does: `run_notebook.py PATH FLAGS ROOT`; those of a study are for papermill."
import sys
from pathlib import Path

if __name__ == '__main__':
    from nbdev.test import test_nb
    path, flags, root = sys.argv[1:]
    sys.exit(0 if test_nb(Path(path), skip_flags=flags.split(), basepath=Path(root))[0] else 1)
