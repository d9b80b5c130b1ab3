"Every notebook's cells, one test per notebook, as `nbdev_test` runs them (those of the study are for papermill)."
import json, os, re, select, signal, subprocess, sys
import pytest
from conftest import ROOT
from report.common import notebooks, settings

NBS, LIMIT = notebooks(ROOT), 900
ONE_THREAD = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'), '1')


class Server:
    "A process that has imported torch once and forks for each notebook"
    def __init__(self):
        env = {**os.environ, 'IN_TEST': '1', 'MPLBACKEND': 'agg', 'PYTHONPATH': str(ROOT), **ONE_THREAD}
        self.process = subprocess.Popen([sys.executable, ROOT/'tests/notebook_server.py', settings(ROOT)['tst_flags'], ROOT],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True, start_new_session=True)

    def run(self, path, out):
        "Exit code of a notebook's process; None when its time is up"
        self.process.stdin.write(json.dumps(dict(path=str(path), cwd=str(path.parent), out=str(out))) + '\n')
        self.process.stdin.flush()
        if not select.select([self.process.stdout], [], [], LIMIT)[0]: return None
        return int(self.process.stdout.readline() or 1)

    def close(self):
        "End it with all that it started"
        try: os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError: pass
        self.process.wait()


@pytest.fixture(scope='module')
def server():
    "One for each worker of pytest; a new one after a notebook that hung"
    kept = []
    def get():
        if not kept or kept[-1].process.poll() is not None: kept.append(Server())
        return kept[-1]
    yield get
    for s in kept: s.close()


@pytest.mark.parametrize('stem', NBS)
def test_notebook(stem, server, tmp_path):
    code = server().run(NBS[stem], tmp_path/'out')
    if code is None: server().close()
    text = re.sub(r'\x1b\[[0-9;]*m', '', (tmp_path/'out').read_text(errors='replace'))
    if code != 0: pytest.fail(f"{stem}.ipynb {'hung' if code is None else ''}\n{text[-6000:]}", pytrace=False)
