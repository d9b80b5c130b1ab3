"Every notebook's cells, one test per notebook, as `nbdev_test` runs them (those of the study are for papermill)."
import os, re, signal, subprocess, sys
import pytest
import preloaded
from conftest import ROOT
from report.common import notebooks, settings

NBS, LIMIT = notebooks(ROOT), 900
ENVIRONMENT = dict(IN_TEST='1', MPLBACKEND='agg', PYTHONPATH=str(ROOT), **dict.fromkeys(preloaded.THREADS, '1'))
NEW = 'core/02_processes', 'core/03_watchdog'     # what these show is how processes start


@pytest.mark.parametrize('stem', [pytest.param(s, marks=pytest.mark.new_processes) if s in NEW else s for s in NBS])
def test_notebook(stem, tmp_path):
    "In a process of its own that has torch and fastai already"
    line = [sys.executable, ROOT/'tests/run_notebook.py', NBS[stem], settings(ROOT)['tst_flags'], ROOT]
    with (tmp_path/'out').open('w') as out:
        p = preloaded.Popen(line, cwd=NBS[stem].parent, env=os.environ | ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
        try: code = p.wait(LIMIT)
        except subprocess.TimeoutExpired: code = None
        finally:
            try: os.killpg(p.pid, signal.SIGKILL)       # with all that it started
            except ProcessLookupError: pass
            p.wait()
    text = re.sub(r'\x1b\[[0-9;]*m', '', (tmp_path/'out').read_text(errors='replace'))
    if code != 0: pytest.fail(f"{stem}.ipynb {'hung' if code is None else ''}\n{text[-6000:]}", pytrace=False)
