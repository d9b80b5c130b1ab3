"""Run the cells of notebooks as `nbdev_test` does, each in a process of its own that has torch and fastai already:
they are imported once and the process is forked, which saves some seconds for each notebook.

A request is a line of JSON on stdin (path, folder to run in, file for the output); the answer is the exit code."""
import json, os, sys, warnings
from pathlib import Path


def preload():
    "What nearly every notebook imports; nothing here starts a thread, or a fork would lose it"
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot, nbdev.showdoc, nbdev.test, numpy, pandas, torch, torchvision  # noqa: F401
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        import fastai.callback.core, fastai.learner, fastai.vision.core  # noqa: F401


def run(request, flags, root):
    "In the child: the notebook's cells; never returns"
    code = 1
    try:
        out = os.open(request['out'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for fd, to in ((nothing, 0), (out, 1), (out, 2)): os.dup2(fd, to)
        os.chdir(request['cwd'])
        sys.path.insert(0, str(root))
        from nbdev.test import test_nb
        code = not test_nb(Path(request['path']), skip_flags=flags, basepath=root)[0]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(code))


def serve(flags, root):
    "Answer requests until there are no more"
    preload()
    for line in sys.stdin:
        pid = os.fork()
        if not pid: run(json.loads(line), flags, root)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == '__main__': serve(sys.argv[1].split(), Path(sys.argv[2]))
