"A process that was forked from one with the large libraries is to a test what a new process is."
import os, signal, subprocess, sys, time
import psutil, pytest
import preloaded
from conftest import ROOT, environment_as_at_start
from kinetics_dance.core.processes import killable

pytestmark = pytest.mark.skipif(not preloaded.on, reason='needs Linux (or PRELOADED=0 is set)')
SHOW = 'import os, sys; print(sys.argv, os.getcwd(), os.environ["WORD"], sys.path[:3], os.getppid(), __name__, sys.stdin.read())'


@pytest.mark.parametrize('args', [
    ['-c', SHOW, 'a', '--b'], ['-c', '1/0'], ['-c', 'raise SystemExit("it cannot")'], ['-c', 'import sys; sys.exit(3)'], ['-c', 'raise KeyboardInterrupt'],
    ['-c', 'import os; os.kill(os.getpid(), 9)'], ['-W', 'error', '-c', 'import warnings; warnings.warn("x")'], ['-m', 'no.such'], ['-m', 'json.tool', '--help'], ['-m', 'yt_dlp', '--version'],
    ['script.py', 'a'], ['-u', '-c', 'import os; print("first"); os.write(1, b"second")'], ['-c', 'import atexit, threading; atexit.register(print, "end"); threading.Thread(target=print, args=["thread"]).start()'],
    ['-m', 'kinetics_dance.study.cli', 'status', '--study', 'no.yaml'], ['-c', 'import os; os.execvp("echo", ["echo", "other"])'],
    ['-c', 'import os; print(sorted(int(f) for f in os.listdir("/proc/self/fd"))[:3], os.getpgid(0) == os.getpid())']], ids=lambda a: ' '.join(a)[:40])
def test_like_a_new_process(args, tmp_path):
    (tmp_path/'script.py').write_text('print(__file__, __name__)\n' + SHOW)
    how = dict(cwd=tmp_path, capture_output=True, text=True, env=os.environ | dict(WORD='é', PYTHONPATH=str(ROOT)), input='typed')
    old, new = preloaded.run([sys.executable, *args], libraries='light', **how), subprocess.run([sys.executable, *args], **how)
    assert (old.returncode, old.stdout, old.stderr) == (new.returncode, new.stdout, new.stderr)


def test_it_is_preloaded_and_our_child():
    "Else nothing is gained by it, and nobody could wait for it"
    p = preloaded.Popen([sys.executable, '-c', 'import sys; print("pandas" in sys.modules, flush=True); sys.stdin.read()'], libraries='light', stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert p.stdout.readline() == b'True\n' and psutil.Process(p.pid).ppid() == os.getpid()
    p.send_signal(signal.SIGTERM)
    assert p.wait(20) == -signal.SIGTERM
    p.stdin.close(), p.stdout.close()


@pytest.mark.parametrize('alone', [True, False])
def test_its_group_is_its_own_from_the_first_moment(alone):
    "Jupyter asks for the group of a kernel as soon as it has started it, and later kills that group"
    for _ in range(20):
        with preloaded.Popen([sys.executable, '-c', ''], libraries='light', start_new_session=alone) as p:
            assert os.getpgid(p.pid) == (p.pid if alone else os.getpgid(0))


def loaded(name): return name in sys.modules, os.getppid(), os.environ.get('WORD')


def test_workers_of_pools_are_preloaded(monkeypatch):
    monkeypatch.setenv('WORD', 'now')
    assert killable(loaded, 'pandas') == (True, os.getpid(), 'now')
    with pytest.raises(TimeoutError): killable(time.sleep, 60, timeout=.5)


@pytest.mark.new_processes
def test_a_mark_asks_for_new_processes():
    assert killable(loaded, 'pandas')[0] is False


def test_what_it_starts_is_preloaded_and_its_child(tmp_path):
    (tmp_path/'inner.py').write_text(f'import os, sys\nsys.path.insert(0, {str(ROOT/"tests")!r})\nfrom kinetics_dance.core.processes import killable\n'
                                     'from test_preloaded import loaded\nif __name__ == "__main__": print(killable(loaded, "pandas")[:2] == (True, os.getpid()))\n')
    (tmp_path/'other.py').write_text('import os, subprocess, sys\nask = "import os, sys; print(\'pandas\' in sys.modules, os.getppid())"\n'
                                     'print(subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout == f"True {os.getpid()}\\n")\n')
    for name in ('inner', 'other'):
        p = preloaded.run([sys.executable, tmp_path/f'{name}.py'], libraries='light', capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(ROOT)))
        assert p.stdout == 'True\n', p


@pytest.mark.parametrize('changes', [dict(PYTHONHASHSEED='77'), dict(PYTHONUTF8='1'), dict(LC_ALL='C')])
def test_what_python_reads_when_it_starts_takes_a_new_process(changes):
    if changes.items() <= os.environ.items(): changes = {k: '0' for k in changes}
    p = preloaded.run([sys.executable, '-c', 'import sys; print("pandas" in sys.modules)'], libraries='light', capture_output=True, text=True, env=os.environ | changes)
    assert p.stdout == 'False\n'


def test_a_kernel_ends_with_who_started_it():
    "Its library reads when it is imported whose end ends it: that must not be what it was in the server"
    ask = 'from ipykernel.kernelapp import IPKernelApp; print(IPKernelApp().parent_handle)'
    p = preloaded.run([sys.executable, '-c', ask], capture_output=True, text=True, env=os.environ | dict(JPY_PARENT_PID='4242'))
    assert p.stdout == '4242\n', p


def test_what_another_test_left_in_the_environment_is_gone():
    ask = dict(args=[sys.executable, '-c', 'import sys; print("pandas" in sys.modules)'], libraries='light', capture_output=True, text=True)
    os.environ.update(PYTHONHASHSEED='6640')
    assert preloaded.run(**ask).stdout == 'False\n'
    environment_as_at_start()
    assert preloaded.run(**ask).stdout == 'True\n'
