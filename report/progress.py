"""How far a run is, for whoever waits: what its kernels tell while they run, and how long the rest will take on this machine."""
import os, re, sys, time
from pathlib import Path
from statistics import median
from kinetics_dance.core.progress import Bars, Lines, Task, duration, read_events
from .common import NUMBERED, read_json, write_json

FOLDER, NAME = '.progress', r'[\w-]+\.\d+\.jsonl'
START = 6       # seconds of a notebook that depend on nothing: its kernel, its imports
MANY = 500      # clips a class, where a study takes all
# (work, seconds) of the notebooks of the demo study on some machine: their proportions, until this machine has run them
TYPICAL = {'00': (58, 144), '01': (58, 24), '02': (2736, 318), '03': (2736, 337), '04': (2736, 392), '05': (1, 11), '06': (1, 19), 'index': (1, 7), 'site': (1, 20)}
OF_A_WING = (1, 15)


def work(stem, values):
    "How much a notebook has to do in a study, to be compared with another study: clips of each class, or those times epochs"
    train, valid, test = (values.get(k) or MANY for k in ('n_train', 'n_valid', 'n_test'))
    if stem[:3] in ('00_', '01_'): return train + valid + test
    if stem[:3] not in ('02_', '03_', '04_'): return 1
    rates = values.get('lr') or ()
    trials = len(rates)*values.get('lr_epochs', 1) if isinstance(rates, (list, tuple)) and len(rates) > 1 else 0
    folds = {None: 1, 'group': 10}.get(values.get('folds'), values.get('folds')) # of groups: nobody knows before the list is read
    return max(1, (len(values.get('seeds') or [0])*values.get('epochs', 1) + trials)*train*folds)


class Pace:
    "How long notebooks took on this machine, and so how long they will take"
    def __init__(self, path, machine):
        self.path, self.machine, old = Path(path), machine, read_json(path)
        same = isinstance(old, dict) and old.get('machine') == machine and isinstance(old.get('took'), dict)
        self.took = {k: v for k, v in old['took'].items() if is_measure(v)} if same else {}

    def note(self, stem, done, seconds):
        self.took[stem] = [done, seconds]
        write_json(self.path, dict(machine=self.machine, took=self.took))

    def expected(self, stem, todo):
        "Seconds; None while nothing has been measured on this machine"
        known = self.took.get(stem)
        if known: return scaled(known, todo)
        ratios = [took[1]/scaled(typical(s), took[0]) for s, took in self.took.items()]
        return median(ratios)*scaled(typical(stem), todo) if ratios else None


def is_measure(v): return isinstance(v, list) and len(v) == 2 and all(isinstance(x, (int, float)) and x > 0 for x in v)
def typical(stem): return TYPICAL.get(stem[:2] if NUMBERED.match(stem) else stem, OF_A_WING)
def scaled(measure, todo): return min(START, measure[1]) + max(0, measure[1] - START)*todo/measure[0]


def finish_time(left, needs, jobs, running=()):
    "Seconds until the last of some notebooks ends. `left`: {stem: seconds}, in the order in which they are started; `needs`: {stem: stems}"
    now, active, waiting = 0., {s: left[s] for s in running}, [s for s in left if s not in running]
    while active or waiting:
        open_ = {*active, *waiting}
        for s in list(waiting):
            if len(active) < jobs and not open_ & set(needs.get(s, ())):
                active[s] = now + left[s]
                waiting.remove(s)
        first = min(active, key=active.get)
        now = active.pop(first)
    return now


class Events:
    "Files in which the kernels of a run tell how far they are. Whoever holds the study may delete what other runs left"
    def __init__(self, folder):
        self.folder, self.read, self.open = folder/FOLDER, {}, {}
        self.clear(NAME)

    def clear(self, pattern):
        for p in self.folder.glob('*.jsonl'):
            if re.fullmatch(pattern, p.name): p.unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()): self.folder.rmdir()

    def path(self, stem): return self.folder/f"{stem.replace('/', '-')}.{os.getpid()}.jsonl"

    def begin(self, stem):
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path(stem).write_bytes(b'')
        self.read[stem], self.open[stem] = 0, {}

    def latest(self, stem):
        "What a notebook told last of the piece of work that it began last, or None"
        if stem not in self.read: return None
        events, self.read[stem] = read_events(self.path(stem), self.read[stem])
        for e in events:
            self.open[stem].pop(e['id'], None)
            if not e['closed']: self.open[stem][e['id']] = e
        return list(self.open[stem].values())[-1] if self.open[stem] else None

    def end(self, stem):
        self.read.pop(stem, None)
        self.path(stem).unlink(missing_ok=True)

    def close(self): self.clear(NAME)


class Show:
    "A line where a notebook starts or ends; in between bars on a terminal, else a line now and then"
    def __init__(self, r, chosen, jobs, pace, values):
        from rich.console import Console
        self.r, self.chosen, self.jobs, self.pace, self.values = r, chosen, jobs, pace, values
        self.console = Console(highlight=False)
        dumb = not self.console.is_terminal or self.console.is_dumb_terminal
        self.screen = Lines(sys.stdout) if dumb else Bars(self.console)
        self.tasks, self.began, self.events = {}, {}, Events(r.folder)

    def line(self, s):
        if isinstance(self.screen, Lines): self.screen.last = self.screen.clock()      # the next one after a silence
        self.console.print(s, soft_wrap=True, markup=False)

    def start(self, st, why):
        self.line(f'{st.stem}: starts ({why})')
        self.events.begin(st.stem)
        self.begin(st.stem)

    def begin(self, stem):
        self.began[stem], self.tasks[stem] = time.monotonic(), Task(stem, None, screen=self.screen)
        whole = self.tasks.pop('all', None) or Task('all', None, screen=self.screen)
        self.screen.close(whole)                        # so that it comes last again
        self.tasks['all'] = whole

    def end(self, st):
        self.line(f'{st.stem}: ' + ('FAILED' if st.state == 'failed' else f'done in {st.seconds:.1f} s'))
        self.over(st.stem)
        self.events.end(st.stem)
        if st.state == 'ran': self.pace.note(st.stem, self.todo(st), st.seconds - st.earlier)

    def todo(self, st): return work(st.stem, self.values)*self.r.networks(st)
    def over(self, stem): self.screen.close(self.tasks.pop(stem))

    def tick(self, running):
        ours = {st.stem: self.look(st) for st in running}
        for stem, (share, text, left) in ours.items(): self.tell(stem, share, text, left)
        if 'all' in self.tasks: self.tell('all', *self.whole(ours))

    def tell(self, stem, share, text, left):
        task = self.tasks[stem]
        task.left, task.total = left, None if share is None else 1
        task.update(share or 0, text)

    def look(self, st):
        "(share, words, seconds left) of a notebook that runs"
        spent, event = time.monotonic() - self.began[st.stem], self.events.latest(st.stem)
        if event:
            of = '' if event['name'] in st.stem else f"{event['name']}: "
            return event['share'], of + event['text'], event['left']
        expected = self.pace.expected(st.stem, self.todo(st))
        left = None if expected is None else max(.1*spent, expected - spent)
        return spent/(spent + left) if left else None, st.where, left

    def whole(self, ours):
        "(share, words, seconds left) of all that is to be run: the answer first, then the rest"
        path = {s: st for s, st in self.r.stages.items() if s in self.chosen and st.state in ('waiting', 'running')}
        left = {s: ours[s][2] if s in ours and ours[s][2] is not None else self.pace.expected(s, self.todo(st)) for s, st in path.items()}
        if None in left.values(): return None, 'time left: known when the first notebook is done', None
        first = {s: x for s, x in left.items() if not path[s].wing}
        then = {s: x for s, x in left.items() if path[s].wing}
        needs = {s: path[s].needs for s in path}
        site = self.pace.expected('site', 1) or 0
        answer = finish_time(first, needs, self.jobs, [s for s in first if s in ours]) + site if first else 0
        rest = finish_time(then, needs, self.jobs, [s for s in then if s in ours]) + site if then else 0
        if first and self.r.controls == 'later': rest += self.later()
        words = f'the answer in about {duration(answer)}' if first and rest and self.r.controls != 'last' else ''
        spent = time.monotonic() - self.tasks['all'].began
        return spent/max(1, spent + answer + rest), words, answer + rest

    def later(self):
        "Seconds that the controls will take, which are put off until the answer is there"
        late = {st.stem: work(st.stem, self.values)*len(st.controls) for st in self.r.training_controls()}
        return finish_time({s: self.pace.expected(s, todo) or 0 for s, todo in late.items()}, {}, self.jobs)

    def close(self):
        for task in self.tasks.values(): self.screen.close(task)
        self.tasks = {}
        self.events.close()

    def summary(self, stages):
        from rich.table import Table
        t = Table(box=None, pad_edge=False)
        t.add_column('notebook'); t.add_column('state'); t.add_column('seconds', justify='right')
        for st in stages: t.add_row(st.stem, st.state, f'{st.seconds:.1f}' if st.seconds else '')
        self.console.print(t)
