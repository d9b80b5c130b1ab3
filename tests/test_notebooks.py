"Every notebook's cells, one test a notebook, as `nbdev_test` runs them (those of the study are for papermill)."
import os, re, subprocess, sys
import pytest
from conftest import ROOT
from report.common import notebooks, settings

RUN = "import sys; from pathlib import Path; from nbdev.test import test_nb; sys.exit(not test_nb(Path(sys.argv[1]), skip_flags=sys.argv[2].split(), basepath=sys.argv[3])[0])"


@pytest.mark.parametrize('stem', notebooks(ROOT))
def test_notebook(stem):
    env = {**os.environ, 'IN_TEST': '1', 'MPLBACKEND': 'agg', 'PYTHONPATH': str(ROOT), **{k: '1' for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}}
    p = subprocess.run([sys.executable, '-c', RUN, str(notebooks(ROOT)[stem]), settings(ROOT)['tst_flags'], str(ROOT)], cwd=ROOT/'nbs', env=env,
                       stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    text = re.sub(r'\x1b\[[0-9;]*m', '', p.stdout)
    if p.returncode: pytest.fail(f'{stem}.ipynb\n{text[-6000:]}', pytrace=False)
