"""Run a study: the notebooks in order through papermill, only those that are not fresh.

    python -m report.run studies/demo.yaml --site     # or: make report STUDY=demo

The answer comes first: the stages and the home page have the machine to themselves, and with --site their pages are
built at once. The notebooks of the wings follow at low priority; what they show is kept for all studies (wings.py).

A notebook is fresh while its code, its parameters, the library modules it imports, the outputs of the notebooks
before it and the pinned versions are the same as when it last ran, and what it wrote is still there, unchanged.
Outputs count, not runs: a notebook that ran again and wrote the same bytes makes nothing after it stale."""
import argparse, hashlib, http.client, json, os, re, shutil, signal, sys, tempfile, threading, time
import urllib.error, urllib.request
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from csv import DictReader, Error as CsvError
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from kinetics_dance.core.dependencies import closure, plain_source
from kinetics_dance.core.platform import KILL, lock_file, lower_priority, signal_group
from kinetics_dance.core.text import for_terminal
from kinetics_dance.models.registry import encoder_names
from .common import (NUMBERED, ROOT, UserError, code_cells, exported, load_nb, main, notebooks, pins, read_json,
                     settings, sha, source, write_atomic, write_json)
from .progress import Pace, Show
from .record import machine, write_record
from .answer import in_a_line
from .wings import Wings, environment
from .study import check_values, effective, load_study, take_over

MODEL = ('predictions/{name}/**/*', 'models/{name}/**/*')
# what a stage trains beside its own model where a study says `controls: true`
CONTROLS = {'02': ['deep_set'], '03': ['shuffled_lstm'], '04': ['set_transformer', 'shuffled_transformer']}
# number: (the notebooks it waits for, what it leaves in the study's folder). A number that is not here waits for all before it.
STAGES = {
    '00': ((), ('clips.csv', 'known.json', 'folds.json', 'videos/*')),
    '01': (('00',), ('frames/*',)),
    '02': (('00', '01'), MODEL),
    '03': (('00', '01'), MODEL),
    '04': (('00', '01'), MODEL),
    '05': (('00', '02', '03', '04'), ('report.json', 'figures/**/*', 'tables/**/*')),
    '06': (('00', '02', '03', '04'), ('inference/**/*',)),
}
# what differs from run to run without meaning anything: it must not make the next notebook stale
VOLATILE = {'report.json': ('seconds',), 'config.json': ('trained', 'seconds'), 'card.json': ('trained', 'seconds')}
SKIPPED = {'history.csv'}
THREADS = ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'NUMEXPR_NUM_THREADS')
SCHEME = 2      # of a stage's key; 1 (version 0.1.0) hashed whole modules under their names and no inputs
# settings that name what a study reads; other values count where they look like a path of a file that is there
INPUTS = ('annotations', 'folder', 'motion', 'weights')
# not what is read: where things are written, how servers are reached, parts of addresses (the value itself counts)
NO_INPUT = ('study', 'runs', 'keep', 'cookies', 'proxy', 'url_template', 'mirror', 'contrast')
VALIDATORS = ('ETag', 'Last-Modified', 'Content-Length')
LARGEST = 2**30     # bytes of a list without validators


def remote_state(url, old, warn):
    "Validators of a URL as the server gives them; where it cannot be reached, what was known"
    request = urllib.request.Request(url, method='HEAD')
    try:
        try: answer = urllib.request.urlopen(request, timeout=20)
        except urllib.error.HTTPError as e:
            if e.code not in (403, 405, 501): raise
            answer = urllib.request.urlopen(url, timeout=20)        # a server that does not know HEAD
        with answer: state = {k: answer.headers[k] for k in VALIDATORS if answer.headers[k]}
        if {'ETag', 'Last-Modified'} & set(state): return state
        with urllib.request.urlopen(url, timeout=60) as answer: data = answer.read(LARGEST + 1)
        return {'sha256': sha(data)}
    except (OSError, ValueError, http.client.HTTPException) as e:
        why = (str(e) or type(e).__name__).splitlines()[0]
        warn(f'warning: {url} cannot be reached ({why}): taken as unchanged')
        return old


def stat_of(path):
    "Size and time of a file, or None; a change of its content cannot leave both times as they were"
    try: s = os.stat(path)
    except OSError: return None
    return [s.st_size, max(s.st_mtime_ns, s.st_ctime_ns)]


def folder_state(folder, csv=None):
    "A hash over path, size and time of each video of a folder, or of those that its list names"
    try:
        if csv is None:
            # `rglob` does not follow links, and a class may be one
            links = [d for d in folder.iterdir() if d.is_symlink() and d.is_dir()]
            names = sorted(p.relative_to(folder).as_posix() for d in (folder, *links) for p in d.rglob('*') if p.is_file())
        else:
            with csv.open(encoding='utf-8-sig', newline='') as f:
                rows = DictReader(f)
                rows.fieldnames = [n.strip() for n in rows.fieldnames or ()]
                names = sorted({r.get('path') or '' for r in rows})
    except (OSError, ValueError, CsvError) as e: return f'cannot be read: {type(e).__name__}'
    return sha(json.dumps([(n, stat_of(folder/n)) for n in names if not n.startswith('.')]))


def input_state(value, root, old, warn):
    "What a setting that names a file, a folder or a URL points to, as far as it can be told apart"
    if re.match('https?://', value): return remote_state(value, old, warn)
    path = root/value
    if path.is_dir(): return folder_state(path)
    return file_sha(path) if path.is_file() else 'absent'


def names_input(key, value, root):
    "Does a setting's value name something outside of the study that is read?"
    if not isinstance(value, str) or key in NO_INPUT: return False
    if re.match('https?://', value) or key in INPUTS: return True
    return ('/' in value or '.' in value) and (root/value).is_file()


def same_library(a, b):
    "Definitions count, and not the modules they lie in"
    return isinstance(a, dict) and sorted(a.values()) == sorted(b.values())


def file_sha(p):
    if p.name in VOLATILE and isinstance(d := read_json(p), dict):
        return sha(json.dumps({k: v for k, v in d.items() if k not in VOLATILE[p.name]}, sort_keys=True))
    with p.open('rb') as f: return hashlib.file_digest(f, 'sha256').hexdigest()[:20]


@dataclass
class Stage:
    "One notebook of a study"
    stem: str
    path: Path
    params: dict                              # as papermill injects them
    needs: list = field(default_factory=list)
    globs: list = field(default_factory=list)
    one_thread: bool = False
    wing: bool = False                        # of a wing: runs after the answer, at low priority
    state: str = 'waiting'                    # waiting, running, fresh, kept, ran, failed
    key: dict = None
    library: str = ''                         # a hash of the library's files when the key was made
    seconds: float = 0.
    where: str = ''                           # the running cell, in words
    error: str = ''
    code: int = 0                             # exit code that the error asks for
    controls: list = ()                       # what it trains beside its own model
    earlier: float = 0.                       # seconds that it took when it ran without controls


def flat(part):
    "A part of a key, the settings among its overrides beside the others"
    return {**part, **part.get('overrides', {}), 'overrides': None}


class Run:
    "A study's stages, their records, and the kernels that are alive"
    def __init__(self, root, study, params, decl, runs):
        self.root, self.study, self.lib, self.params, self.decl = root, study, settings(root)['lib_name'], params, decl
        self.folder = root/(runs or params.get('runs') or 'runs')/study
        self.executed, self.records = self.folder/'executed', {}
        self.pins = sha(json.dumps(sorted(pins(root).items())))
        nbs, numbers = notebooks(root), {}
        self.stages = {}
        for stem, path in nbs.items():
            mine = {k: v for k, v in params.items() if k in decl[stem]}
            # what no notebook has as a parameter goes to those that take any setting
            if 'overrides' in decl[stem]: mine['overrides'] = params.get('overrides', {}) | {k: v for k, v in params.items() if not any(k in d for d in decl.values())}
            if NUMBERED.match(stem):
                needs, globs = STAGES.get(stem[:2], (tuple(numbers), ()))
                trained = [stem[3:], *CONTROLS.get(stem[:2], ()), *(mine.get('extra_models') or ())] if globs is MODEL else [stem[3:]]
                trained += encoder_names(mine.get('encoders'), mine.get('encoder_models') or ()) if globs is MODEL else []
                st = Stage(stem, path, mine, [numbers[n] for n in needs if n in numbers], list(dict.fromkeys(g.format(name=n) for n in trained for g in globs)),
                           one_thread=globs is MODEL)        # three of them run side by side
                if globs is MODEL and mine.get('overrides', {}).get('controls'): st.controls = CONTROLS.get(stem[:2], ())
                numbers[stem[:2]] = stem
            elif stem == 'index': st = Stage(stem, path, mine, list(numbers.values()), one_thread=True)
            else: st = Stage(stem, path, mine, one_thread=True, wing=True)
            self.stages[stem] = st
        self.stages = {s: st for wing in (False, True) for s, st in self.stages.items() if st.wing == wing}
        self.wings, self.versions = Wings(self.folder.parent), environment(root)

    def put_off_controls(self):
        "Let the stages run without controls where none was trained yet: the answer does not wait for them. True where there is something to put off"
        noted = [(self.record(st.stem) or {}).get('key', {}).get('parameters', {}).get('overrides', {}) for st in self.training_controls()]
        if not noted or any(p.get('controls') for p in noted): return False
        self.set_controls('later')
        return True

    def take_up_controls(self):
        "The stages that run again, now that the answer is there: those that train controls, and those that need them"
        self.set_controls('last')
        late = {st.stem for st in self.training_controls()}
        again = [st for st in self.stages.values() if not st.wing and (st.stem in late or late & set(st.needs))]
        for st in again: st.state, st.earlier = 'waiting', st.seconds
        return [st.stem for st in again]

    def training_controls(self): return [st for st in self.stages.values() if st.controls]

    def set_controls(self, when):
        self.controls = when
        for st in self.training_controls(): st.params = {**st.params, 'overrides': {**st.params['overrides'], 'controls': when != 'later'}}

    def networks(self, st):
        "How many a stage trains as it runs now"
        return max(1, (self.controls != 'last') + (self.controls != 'later')*len(st.controls))

    def record(self, stem):
        if stem not in self.records: self.records[stem] = read_json(self.folder/'stages'/f'{stem}.json')
        return self.records[stem]

    def outputs(self, st, known=None):
        "{file: [size, mtime_ns, hash]} of what the stage left; hashes of files that look untouched are taken from `known`"
        res = {}
        for g in st.globs:
            for p in sorted(self.folder.glob(g)):
                if p.name.startswith('.') or p.name.endswith('.tmp') or p.name in SKIPPED or not p.is_file(): continue
                rel = p.relative_to(self.folder).as_posix()
                old = (known or {}).get(rel)
                seen = stat_of(p)
                res[rel] = [*seen, old[2] if old and old[:2] == seen else file_sha(p)]
        return res

    def key(self, st):
        "Everything that the result of a notebook depends on, in parts, so that a stale one can say why"
        for n in st.needs:
            if not self.record(n): raise UserError(f'{st.stem} needs {n}, which has not been run: leave out --only')
        up = {n: sha(json.dumps(sorted((f, o[2]) for f, o in self.record(n)['outputs'].items()))) for n in st.needs}
        if 'contrast' in self.decl[st.stem]:       # it also reads the report of another study, where there is one
            name = self.params.get('contrast', self.decl[st.stem]['contrast'])
            if name and name != self.study and (p := self.folder.parent/name/'report.json').exists(): up[f'study {name}'] = file_sha(p)
        key = dict(scheme=SCHEME, **self.reached(st), upstream=up, pins=self.pins, inputs=self.inputs(st),
                   parameters={k: v for k, v in st.params.items() if k != 'runs'})
        return key | {'versions': self.versions} if st.wing else key

    def reached(self, st):
        "A notebook's own code, and what it reaches in the library; as noted where both have the same bytes as then"
        rec, st.library = self.record(st.stem) or {}, self.library()
        same = rec.get('source') == sha(st.path.read_bytes()) and rec.get('library') == st.library and rec['key'].get('scheme') == SCHEME
        if same: return {k: rec['key'][k] for k in ('code', 'library')}
        cells = [source(c) for c in code_cells(load_nb(st.path))]
        return dict(code=sha('\0'.join(plain_source(cells, self.root, self.lib))), library=closure(cells, self.root, self.lib))

    def library(self):
        "A hash of the library's files as they are now; somebody may edit them while this runs"
        files = sorted((self.root/self.lib).rglob('*.py'))
        if (now := [(p, stat_of(p)) for p in files]) != self.files:
            self.files = now
            self.files_sha = sha(json.dumps([(p.relative_to(self.root).as_posix(), sha(p.read_bytes())) for p in files]))
        return self.files_sha

    def inputs(self, st):
        "{setting: state} of the files, folders and URLs that the notebook's settings name"
        values, old, res = self.decl[st.stem] | st.params | st.params.get('overrides', {}), (self.record(st.stem) or {}).get('key', {}).get('inputs', {}), {}
        by_list = values.get('source') == 'folder' and values.get('annotations')
        for key, value in values.items():
            if key == 'folder' and (by_list or values.get('source') != 'folder'): continue
            if key == 'weights' and value in ('none', 'imagenet'): continue
            for v in value if isinstance(value, (list, tuple)) else [value]:
                if names_input(key, v, self.root): res[f'{key}: {v}'] = input_state(v, self.root, old.get(f'{key}: {v}'), self.warn)
        # what was decided beforehand is read by the notebook that tests for a margin
        if 'margin' in self.decl[st.stem] and (said := self.root/'studies'/f'{self.study}.prereg.yaml').is_file(): res['preregistration'] = file_sha(said)
        if by_list and not re.match('https?://', csv := by_list if isinstance(by_list, str) else by_list[0]):
            folder = self.root/(values.get('folder') or Path(csv).parent)
            res['videos of the list'] = folder_state(folder, self.root/csv)
        return res

    def warn(self, line): print(line, file=sys.stderr)

    def stale(self, st):
        "Why the notebook has to run, or None"
        rec, key = self.record(st.stem), st.key
        if not rec or not (self.executed/f'{st.stem}.ipynb').exists(): return 'not run yet'
        if rec['key'].get('scheme') != SCHEME: return 'last run by an older version, which noted less'
        for part, old in rec['key'].items():
            if old == key[part] or part == 'library' and same_library(old, key[part]): continue
            if not isinstance(old, dict): return f'{part} changed'
            then, now = flat(old), flat(key[part])
            names = [k for k in {**then, **now} if then.get(k) != now.get(k)]
            return f"{part} changed" + (f": {', '.join(sorted(names)[:4])}" if names else '')
        now = self.outputs(st, rec['outputs'])
        bad = [f for f in {**rec['outputs'], **now} if rec['outputs'].get(f, [0]*3)[2] != now.get(f, [0]*3)[2]]
        if bad: return f"output {'changed' if bad[0] in now else 'missing'}: {bad[0]}"

    def take(self, st):
        "Take the execution of a notebook of a wing that some study left; False where there is none"
        found = self.wings.get(st.stem, st.key) if st.wing else None
        if not found: return False
        data, record = found
        write_atomic(self.executed/f'{st.stem}.ipynb', data)
        self.save(st.stem, record | dict(key=st.key))
        return True

    def keep(self, st):
        "Leave the execution of a notebook of a wing for other studies"
        if st.wing: self.wings.put(st.stem, st.key, self.executed/f'{st.stem}.ipynb', self.record(st.stem))

    def refresh(self, st):
        "Put the prose and comments of the notebook as it is now around the outputs that it had: same code, same results"
        rec, now = self.record(st.stem), sha(st.path.read_bytes())
        if rec.get('source') != now: self.with_new_prose(st)
        if (rec.get('source'), rec.get('library')) != (now, st.library):
            self.save(st.stem, {**rec, 'source': now, 'library': st.library, 'key': st.key})

    def with_new_prose(self, st):
        "The executed notebook, with the cells as they are now and the outputs that it had"
        out = self.executed/f'{st.stem}.ipynb'
        old, new = load_nb(out), load_nb(st.path)
        for a, b in zip(code_cells(old), code_cells(new)):
            b.update(outputs=a['outputs'], execution_count=a['execution_count'])
        for c in old['cells']:
            if 'injected-parameters' in c['metadata'].get('tags', []):
                i = next((i for i, x in enumerate(new['cells']) if 'parameters' in x['metadata'].get('tags', [])), -1)
                new['cells'].insert(i + 1, c)
        new['metadata'] = old['metadata']
        write_json(out, new)

    def save(self, stem, rec):
        self.records[stem] = rec
        write_json(self.folder/'stages'/f'{stem}.json', rec)

    def settle(self, stems, force):
        "Find out which notebooks of the wings need not run, one by one, so that it can be done while others do"
        for st in (self.stages[s] for s in stems if self.stages[s].wing and not force):
            st.key = self.key(st)
            why = self.stale(st)
            if why is None or self.take(st): self.leave(st, why)
            yield True

    def leave(self, st, why=None):
        "A notebook stays as it is, or as another study has it"
        st.state, st.seconds = 'kept' if why else 'fresh', self.record(st.stem)['seconds']
        self.keep(st)
        self.refresh(st)

    # --- one notebook -------------------------------------------------------------------------------------------------

    def execute(self, st):
        "Run one notebook in this thread; sets its state, and writes its record if it succeeded"
        import logging, nbformat, papermill
        logging.getLogger('papermill').setLevel(logging.ERROR)      # keys are checked in study.py; it stumbles over quotes in help texts
        from papermill.exceptions import PapermillExecutionError
        started, t0 = datetime.now(timezone.utc), time.time()
        running, failed, out = (self.executed/d/f'{st.stem}.ipynb' for d in ('.running', '.failed', '.'))
        for p in (running, failed): p.parent.mkdir(parents=True, exist_ok=True); p.unlink(missing_ok=True)
        src, key = load_nb(st.path), st.key
        src_sha, n, heading = sha(st.path.read_bytes()), len(code_cells(src)), ''

        def on_cell(cell, cell_index):
            nonlocal heading
            if cell['cell_type'] == 'code': on_cell.k += 1
            elif m := re.search(r'^#+ (.+)', cell['source'], re.M): heading = m[1]
            st.where = f"cell {min(on_cell.k, n)}/{n}  {' '.join(heading.split()[:6])}"
        on_cell.k = 0
        try:
            nb = papermill.execute_notebook(
                st.path, running, parameters=st.params, kernel_name='python3', progress_bar=False, autosave_cell_every=0, start_timeout=600,
                kernel_manager_class=self.kernel_class(st), extra_arguments=['--log-level=50'], resources={'metadata': {'path': str(st.path.parent)}}, on_cell_start=on_cell)
        except PapermillExecutionError as e:
            os.replace(running, failed)
            st.state, st.code = 'failed', 2 if e.ename == 'StudyError' else 1
            bad = next(c for c in nbformat.read(failed, 4).cells if any(o.output_type == 'error' for o in c.get('outputs', [])))
            at = next((i for i, c in enumerate(src['cells'], 1) if c.get('id') == bad.get('id')), e.cell_index + 1)
            lines = [l for l in e.evalue.strip().splitlines() if l.strip()] or ['']
            st.error = f"{st.path.name} cell {at} (In [{e.exec_count}]): {e.ename}: {lines[0] if len(lines) == 1 else lines[0] + ' … ' + lines[-1]}"
            return
        except Exception as e:               # the kernel died, or would not start
            if running.exists(): os.replace(running, failed)
            st.state, st.code = 'failed', 1
            st.error = f'{st.path.name} {st.where.strip()}: the kernel died ({type(e).__name__}: {(str(e).splitlines() or [""])[0]}); out of memory?'
            return
        for k in ('input_path', 'output_path'): nb.metadata.papermill.pop(k, None)     # absolute paths of this machine
        write_atomic(out, nbformat.writes(nb))
        running.unlink(missing_ok=True)
        st.seconds, st.state = round(time.time() - t0 + st.earlier, 2), 'ran'
        self.save(st.stem, dict(key=key, source=src_sha, library=st.library, outputs=self.outputs(st), seconds=st.seconds, cells=n, started=started.isoformat(timespec='seconds'),
                                finished=datetime.now(timezone.utc).isoformat(timespec='seconds')))
        self.keep(st)

    def kernel_class(self, st):
        "A kernel manager that starts kernels of this interpreter in nbs/, and notes them so that none outlives us unseen"
        from jupyter_client import AsyncKernelManager
        run = self

        class Kernel(AsyncKernelManager):
            def __init__(self, **kw):          # sockets in a folder of ours: no TCP ports that others see
                ipc = dict(transport='ipc', ip=f"{os.environ['JUPYTER_RUNTIME_DIR']}/{st.stem.replace('/', '-')}")
                super().__init__(**(ipc if os.name == 'posix' else {}), **kw)

            async def start_kernel(self, **kw):
                env = {k: v for k, v in os.environ.items() if k not in ('IN_TEST', 'MPLBACKEND')}
                env.update(PYTHONHASHSEED='0', PYTHONPATH=os.pathsep.join([str(run.root), *filter(None, [env.get('PYTHONPATH')])]))
                if run.events: env['KINETICS_DANCE_PROGRESS'] = str(run.events.path(st.stem))
                if st.one_thread: env.update({k: env.get(k, '1') for k in THREADS})
                await super().start_kernel(**{**kw, 'env': env, 'cwd': str(st.path.parent)})
                if st.wing: lower_priority(self.provisioner.process.pid)
                run.note(self.provisioner.process.pid)
        return Kernel

    kernels, events, files, controls, _lock = (), None, None, 'now', threading.Lock()

    def note(self, pid):
        import psutil
        with self._lock:
            self.kernels += ((pid, psutil.Process(pid).create_time()),)
            write_json(self.folder/'.kernels', self.kernels)

    def kill(self, kernels, sig=KILL):
        "Signal kernels with all they started (each leads its own process group), if they are still the same processes"
        import psutil
        for pid, created in kernels:
            try:
                if psutil.Process(pid).create_time() == created: signal_group(pid, sig)
            except (psutil.Error, ProcessLookupError, PermissionError): pass

    def failed(self): return [st for st in self.stages.values() if st.state == 'failed']

    # --- all of them --------------------------------------------------------------------------------------------------

    def go(self, chosen, jobs, force, show, meanwhile=iter(())):
        "Run the chosen stages, up to `jobs` side by side; after a failure those that run finish and nothing new starts. `meanwhile`: steps of other work"
        waiting, running = [self.stages[s] for s in chosen if self.stages[s].state == 'waiting'], {}
        with ThreadPoolExecutor(jobs) as pool:
            try:
                while waiting or running:
                    for st in list(waiting):
                        if self.failed(): waiting.clear(); break
                        open_ = {s.stem for s in [*waiting, *running.values()]}
                        if len(running) >= jobs or open_ & set(st.needs): continue
                        waiting.remove(st)
                        st.key = self.key(st)      # here and not in the notebook's thread: Python 3.11 parses in one thread at a time
                        why = 'asked for' if force else self.stale(st)
                        if why is None: self.leave(st)
                        else:
                            st.state = 'running'; show.start(st, why)
                            running[pool.submit(self.execute, st)] = st
                    busy = running and next(meanwhile, False)
                    done, _ = wait(running, timeout=0 if busy else .5, return_when=FIRST_COMPLETED)
                    for f in done: f.result(); show.end(running.pop(f))
                    show.tick(list(running.values()))
            except BaseException:                                          # Ctrl-C, a SIGTERM, or a bug of ours
                self.kill(self.kernels, signal.SIGINT)                      # lets cells close their files
                wait(running, timeout=5)
                self.kill(self.kernels)
                raise

    def sync_library(self):
        "Export the library if it is not what the notebooks say (a hash of both tells, in milliseconds)"
        def state(): return sha(b''.join(p.read_bytes() for p in [*notebooks(self.root).values(), *sorted((self.root/self.lib).rglob('*.py'))]))
        stamp = self.folder.parent/'.exported'
        if stamp.exists() and stamp.read_text() == state(): return
        for name, data in exported(self.root).items():
            p = self.root/self.lib/name
            if not p.exists() or p.read_bytes() != data: write_atomic(p, data)
        if stamp.parent.exists(): write_atomic(stamp, state())       # nothing is written before the study file has passed

    def finish(self):
        "Durations into report.json, and a word about outputs that a later notebook changed"
        seconds = {s: self.record(s)['seconds'] for s in self.stages if self.record(s)}
        p = self.folder/'report.json'
        rep = read_json(p)
        if isinstance(rep, dict) and rep.get('seconds') != seconds:
            text = p.read_text(encoding='utf-8')
            rep['seconds'] = dict(sorted(seconds.items()))
            write_atomic(p, json.dumps(rep, indent=1, ensure_ascii=text.isascii()) + '\n'*text.endswith('\n'))
        for st in self.stages.values():
            if (rec := self.record(st.stem)) and (now := self.outputs(st, rec['outputs'])) != rec['outputs']:
                bad = [f for f in {**rec['outputs'], **now} if rec['outputs'].get(f, [0]*3)[2] != now.get(f, [0]*3)[2]]
                if bad: print(f'warning: {bad[0]} was changed after {st.stem} wrote it, so {st.stem} will run again next time', file=sys.stderr)
                else: self.save(st.stem, {**rec, 'outputs': now})           # only touched


def numbers(x, at=''):
    "{path: number} of everything in a report that is a number; items of a list are named by their names, where they have any"
    if isinstance(x, bool) or x is None or isinstance(x, str): return {}
    if isinstance(x, (int, float)): return {at: x}
    if isinstance(x, list):
        names = [' '.join(str(v) for v in i.values() if isinstance(v, str)) if isinstance(i, dict) else '' for i in x]
        x = {n if n and names.count(n) == 1 else str(k): i for k, (n, i) in enumerate(zip(names, x))}
    return {k: v for key, y in x.items() if at or key != 'seconds' for k, v in numbers(y, f'{at}.{key}' if at else key).items()}


TOLERANCE, TIMES = 1e-6, 1.5      # numbers may differ by so much (times so much, for what a clock or the memory meter says)


def changed_numbers(old, machine, folder, shown=8):
    "What `make report` says about the numbers of report.json against the last run of the same study, or None if there was none"
    new, now = read_json(folder/'report.json'), (read_json(folder/'record.json') or {}).get('machine')
    if not isinstance(old, dict) or not isinstance(new, dict): return
    if machine != now: return 'report.json: the last run was on another machine, so its numbers are not compared'
    a, b = numbers(old), numbers(new)
    measured = re.compile(r'(^|\.)(ms_\w+|\w+_seconds|\w+_mb)$')
    def differ(k):
        if k not in a or k not in b: return True
        x, y = a[k], b[k]
        if measured.search(k): return max(x, y) > TIMES*min(x, y)
        return abs(x - y) > TOLERANCE*max(1, abs(x), abs(y))
    diff = sorted(k for k in {**a, **b} if differ(k))
    what = f'against the last run of this study on this machine (tolerance {TOLERANCE:g}; a factor of {TIMES:g} for times and memory)'
    if not diff: return f'report.json: none of {len(b)} numbers changed {what}'
    lines = [f"  {k}: {a.get(k, 'not there')} → {b.get(k, 'not there')}" for k in diff[:shown]]
    return '\n'.join([f'report.json: {len(diff)} of {len({**a, **b})} numbers changed {what}', *lines, *([f'  and {len(diff) - shown} more'] if len(diff) > shown else [])])


@contextmanager
def locked(folder):
    "One run a study at a time; the lock goes with the process that holds it"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder/'.lock').open('a+') as f:
        if not lock_file(f):
            f.seek(0)
            raise UserError(f'study {folder.name!r} is being run by process {f.read().strip() or "?"}: wait for it, or stop it')
        f.truncate(0); f.write(str(os.getpid())); f.flush()
        try: yield
        finally: f.truncate(0)


class Pages:
    "The site of a run: first the pages of the answer, then all"
    def __init__(self, r, out, show): self.r, self.show, self.out = r, show, (out or r.root/'_site').resolve()
    home = property(lambda self: os.path.relpath(self.out/'index.html'))

    def build(self, **kw):
        from .site import build
        self.show.begin('site')
        t0 = time.time()
        try: new = build(self.r.root, self.r.study, str(self.r.folder.parent), self.out, **kw)
        finally: self.show.over('site')
        if new: self.show.pace.note('site', 1, time.time() - t0)
        return new

    def all(self): return f"{'built' if self.build() else 'up to date'}: {self.home}"


def first(r, values, pages, show, put_off):
    "What a reader came for, before controls are trained and any notebook of a wing runs: the answer in a line, its page and those of the stages"
    r.finish()
    write_record(r, values)
    if pages: pages.build(answer=True)
    whole = all(st.state in ('fresh', 'ran') for st in r.stages.values() if not st.wing)
    if not whole or not (said := in_a_line(read_json(r.folder/'report.json'))): return
    show.line(for_terminal(f'the answer: {said}' + (f'; open {pages.home}' if pages else '')))
    if put_off: show.line('what time buys (a set of moments, or their order) is known when the controls are trained, too')


def tell_changes(r, last, show):
    "What the numbers of the stages that ran are, against the last run"
    ran = any(st.state == 'ran' for st in r.stages.values() if not st.wing)
    if ran and (news := changed_numbers(*last, r.folder)): show.line(news)


def run():
    ap = argparse.ArgumentParser(prog='python -m report.run', description='Run a study: every notebook that is not fresh, through papermill.')
    ap.add_argument('study', help='the study file, such as studies/demo.yaml')
    ap.add_argument('--only', nargs='+', metavar='NOTEBOOK', help='only these (their stem or its beginning)')
    ap.add_argument('--force', action='store_true', help='run also what is fresh')
    ap.add_argument('--jobs', type=int, default=3, help='how many notebooks side by side (default 3)')
    ap.add_argument('--site', action='store_true', help='build the site, too: the answer and the stages first, then every page')
    ap.add_argument('--out', type=Path, help='where the site goes (default: _site)')
    ap.add_argument('--runs', help='folder of all runs (default: runs)')
    ap.add_argument('--replace', action='store_true', help='take over a study folder that was made from other lists')
    ap.add_argument('--root', type=Path, default=ROOT, help=argparse.SUPPRESS)
    a = ap.parse_args()
    root = a.root.resolve()
    study, params, decl, shown = load_study(a.study, root, a.runs)
    os.chdir(root)                                     # nbdev looks for settings.ini from here
    os.environ.pop('IN_TEST', None)
    r = Run(root, study, params, decl, a.runs)
    chosen = [s for s in r.stages if not a.only or any(s.startswith(o.removesuffix('.ipynb')) for o in a.only)]
    if not chosen: raise UserError(f"--only {' '.join(a.only)}: no such notebook (there are: {', '.join(r.stages)})")
    r.sync_library()
    # clips may be fetched and decoded on a machine that has no GPU
    check_values(params, decl, root, shown, trains=any(s[:2] not in ('00', '01') for s in chosen))
    if a.replace: take_over(root, effective(params, decl, root))
    # kernels: the python3 of this environment, whatever the user has installed, and no history or start-up files of theirs
    scratch = tempfile.mkdtemp(prefix='study-')
    os.environ.update(JUPYTER_PATH=f'{sys.prefix}/share/jupyter', JUPYTER_RUNTIME_DIR=scratch, IPYTHONDIR=scratch)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    resume = 'what is done is kept; the same command goes on from there'
    try:
        with locked(r.folder):
            r.kill(read_json(r.folder/'.kernels', []))  # left by a run that was killed
            last = read_json(r.folder/'report.json'), (read_json(r.folder/'record.json') or {}).get('machine')
            values, t0 = effective(params, decl, root), time.time()
            show = Show(r, chosen, max(1, a.jobs), Pace(r.folder.parent/'.pace.json', machine()), values)
            r.events, pages = show.events, Pages(r, a.out, show) if a.site else None
            try:
                settling, put_off = r.settle(chosen, a.force), not a.only and r.put_off_controls()
                r.go([s for s in chosen if not r.stages[s].wing], max(1, a.jobs), a.force, show, settling)
                if not r.failed():
                    first(r, values, pages if not a.only else None, show, put_off)
                    if not put_off: tell_changes(r, last, show)
                again = r.take_up_controls() if put_off and not r.failed() else []
                for _ in settling: pass
                r.go([*again, *(s for s in chosen if r.stages[s].wing)], max(1, a.jobs), a.force, show)
                (r.folder/'.kernels').unlink(missing_ok=True)
                r.finish()
                if again and not any(r.stages[s].state == 'failed' for s in again): tell_changes(r, last, show)
                if all(r.stages[s].state == 'fresh' for s in chosen): print(f'{study}: all {len(chosen)} notebooks are fresh')
                else: show.summary(r.stages[s] for s in chosen); print(f'{study}: {time.time()-t0:.0f} s')
                bad = r.failed()
                for st in bad:
                    print(for_terminal(f'error: {st.error}', keep='\n\t'), file=sys.stderr)
                    if (f := r.executed/'.failed'/f'{st.stem}.ipynb').exists():
                        print(f'       the notebook as far as it came: {os.path.relpath(f)}; {resume}', file=sys.stderr)
                write_record(r, values)
                if pages and not bad: print(pages.all())
            except KeyboardInterrupt:
                show.close(); print(f'\nstopped: {resume}', file=sys.stderr)
                return 130
            finally: show.close()
            return max((s.code for s in bad), default=0)
    finally: shutil.rmtree(scratch, ignore_errors=True)


if __name__ == '__main__': main(run)
