"""The real lists, as they are published: what is in them, how they are split, and what the table bears."""
import json, multiprocessing, sqlite3, subprocess, sys, tarfile
import pandas as pd, pytest
from hypothesis import given, settings, strategies as st
import preloaded
from conftest import ROOT
from kinetics_dance.core.settings import defaults
from kinetics_dance.clips.audit import audit
from kinetics_dance.clips.annotations import clip_id, folder_name, read_annotations, select_classes
from kinetics_dance.clips.splits import official_splits, sample, split, wanted
from kinetics_dance.clips.table import ClipTable
from kinetics_dance.core.base import StudyError
from kinetics_dance.download.cvdf import CLASS_NUMBERS, class_numbers
from report.common import declared, load_nb

LISTS = ROOT.parent/'shared/data/kinetics'
real_lists = pytest.mark.skipif(not LISTS.is_dir(), reason='the published lists are not here (../shared/data/kinetics)')


@pytest.fixture(scope='module')
def real(): return pd.concat([read_annotations(LISTS/f'k700_2020_dancing_{s}.csv') for s in ('train', 'validate')], ignore_index=True)


@real_lists
def test_the_fifteen_classes(real):
    names = (LISTS/'k700_2020_classes.txt').read_text().split('\n')[:700]
    kept = select_classes(pd.DataFrame({'label': names})).label.tolist()
    assert len(kept) == 15 and 'breakdancing' in kept and kept == sorted(real.label.unique())
    assert class_numbers(names) == {n: i for i, n in enumerate(sorted(names), 1)}
    assert {n: class_numbers(names)[n] for n in kept} == CLASS_NUMBERS
    every = read_annotations(LISTS/'kinetics-700_2020_val.csv')
    assert len(select_classes(every)) == 741 and len(every) == 34_198
    with pytest.raises(StudyError, match="did you mean 'tango dancing'"): select_classes(every, classes=['tanga dancing'])
    assert len(read_annotations(LISTS/'kinetics-700_2020_test.csv')) == 67_767 and read_annotations(LISTS/'kinetics-700_2020_test.csv').label.isna().all()
    assert len(official_splits(read_annotations(LISTS/'kinetics-700_2020_test.csv'))) == 0
    assert 'is_cc' in read_annotations(LISTS/'kinetics-400_val.csv')


@real_lists
def test_json_and_archive_say_the_same(real, tmp_path):
    d = {r.youtube_id: dict(annotations=dict(label=r.label, segment=[r.time_start, r.time_end]), duration=10., subset=r.split, url='') for r in real[:500].itertuples()}
    (tmp_path/'a.json').write_text(json.dumps(d))
    pd.testing.assert_frame_equal(read_annotations(tmp_path/'a.json'), real[:500])
    with tarfile.open(tmp_path/'kinetics700_2020_delta.tar.gz', 'w:gz') as t:
        t.add(tmp_path/'a.json', 'kinetics700_2020_delta/train.json')
        t.add(LISTS/'k700_2020_dancing_validate.csv', 'kinetics700_2020_delta/validate.csv')
    assert len(read_annotations(tmp_path/'kinetics700_2020_delta.tar.gz')) == 500 + 741
    (tmp_path/'bad.tar.gz').write_bytes((tmp_path/'kinetics700_2020_delta.tar.gz').read_bytes()[:3000])
    with pytest.raises(StudyError, match='bad.tar.gz: cannot be read'): read_annotations(tmp_path/'bad.tar.gz')


@real_lists
def test_audit_of_the_real_lists(real):
    k400 = select_classes(read_annotations(LISTS/'kinetics-400_val.csv'))
    got = audit(real, {'k400': k400})
    assert got.clips.to_dict() == {
        'no label': 0, 'the same row again': 0, 'same seconds, two labels': 2, 'upload with two labels': 14, 'upload in two splits': 2,
        'upload with several clips': 14, 'not 10 s long': 2, 'id begins with -': 193, 'not an id of YouTube': 0,
        'k400: also in our train list': 475, 'k400: also in our validate list': 9}
    assert got.of['k400: also in our train list'] == 645


@real_lists
@pytest.mark.parametrize('n_train, n_valid, n_test', [(0, 50, 0), (100, 20, 0), (500, 50, 30), (5, 1, 1)])
def test_real_splits(real, n_train, n_valid, n_test):
    lines, gone = split(official_splits(real), n_valid, 0, n_train)
    assert lines.groupby('group').split.nunique().max() == 1 and not lines.groupby(['label', 'split']).place.apply(lambda p: sorted(p) != list(range(len(p)))).any()
    assert len(lines) + len(gone) == len(real) and sorted(gone.youtube_id) == ['m-6JMfKxmy8', 'm-6JMfKxmy8', 'q1dsdpBtCJw']
    assert lines[lines.youtube_id == 'q1dsdpBtCJw'].split.tolist() == ['test']              # the leak: gone from train
    w = wanted(lines, n_train, n_valid, n_test)
    n = w.groupby(['split', 'label']).size()
    assert (n['valid'] == n_valid).all() and (not n_train or (n['train'] == n_train).all()) and (not n_test or (n['test'] == n_test).all())
    dead = [clip_id(*r) for r in w[['youtube_id', 'time_start', 'time_end']].sample(frac=.08, random_state=1).values]
    more = wanted(lines, n_train, n_valid, n_test, gone=dead)
    assert len(more.merge(w)) == len(w)
    ids = {clip_id(*r) for r in more[['youtube_id', 'time_start', 'time_end']].values} - set(dead)
    alive = more[[clip_id(*r) in ids for r in more[['youtube_id', 'time_start', 'time_end']].values]].groupby(['split', 'label']).size()
    if 0 < n_train < 500: assert (alive['train'] == n_train).all() and (alive['valid'] == n_valid).all()


@real_lists
def test_fewer_classes_are_the_same_clips(real):
    few = real[real.label.isin(['tango dancing', 'tap dancing'])]
    a, b = sample(real, 20, 3), sample(few, 20, 3)
    assert b.youtube_id.tolist() == a[a.label.isin(few.label.unique())].youtube_id.tolist()
    x, y = (wanted(split(official_splits(d), 10, 3, 50)[0], 50, 10, 0) for d in (real, few))
    pd.testing.assert_frame_equal(x[x.label.isin(few.label.unique())].reset_index(drop=True), y)


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from('abc'), st.sampled_from(['train', 'validate']), st.integers(0, 3)), min_size=1, max_size=40),
       st.integers(1, 4), st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_split_of_any_list(rows, n_valid, n_train):
    df = pd.DataFrame([dict(label=l, youtube_id=f'{i:011}', time_start=10.*t, time_end=10.*t + 10, split=s) for i, l, s, t in rows])
    lines, gone = split(official_splits(df), n_valid, 0, n_train)
    assert len(lines) + len(gone) == len(df)
    if not len(lines): return
    assert lines.groupby('group').split.nunique().max() == 1
    assert not lines.duplicated(['youtube_id', 'time_start', 'time_end']).any()
    ids = [clip_id(*r) for r in lines[['youtube_id', 'time_start', 'time_end']].values]
    for dead in (ids[:2], ids[:5], ids):                                    # more is gone, more is wanted: nothing ever leaves
        assert len(wanted(lines, n_train, n_valid, 2, dead).merge(wanted(lines, n_train, n_valid, 2))) == len(wanted(lines, n_train, n_valid, 2))


@pytest.mark.parametrize('label', ['..', '../../etc', 'a/b', 'a\\b', 'CON\0', '', ' ', 'x'*300, "massaging person's head", 'tai chi', 'é', '.hidden'])
def test_labels_become_harmless_folders(tmp_path, label):
    name = folder_name(label)
    (tmp_path/name).mkdir()
    assert (tmp_path/name).resolve().parent == tmp_path.resolve() and name[0] != '.'


def _write(path, k, n):
    t = ClipTable(path)
    for i in range(n): t.update([dict(clip_id=clip_id(f'{k:05}{j:06}', 0, 10), status='ok', frames=i) for j in range(i*10, i*10 + 10)])

def test_eight_writers(tmp_path):
    path, n = tmp_path/'clips.sqlite', 20
    ClipTable(path).set(pd.DataFrame([dict(label='a', youtube_id=f'{k:05}{j:06}', time_start=0., time_end=10., split='train') for k in range(8) for j in range(n*10)]))
    ps = [multiprocessing.get_context('spawn').Process(target=_write, args=(path, k, n)) for k in range(8)]
    for p in ps: p.start()
    for p in ps: p.join()
    t = ClipTable(path).frame()
    assert all(p.exitcode == 0 for p in ps) and (t.status == 'ok').all() and len(t) == 8*n*10
    assert sqlite3.connect(path).execute('PRAGMA integrity_check').fetchone() == ('ok',)


def test_defaults_are_those_of_the_notebook():
    known = defaults()
    assert {k: known[k] for k in declared(load_nb(ROOT/'nbs/00_data.ipynb'))} == declared(load_nb(ROOT/'nbs/00_data.ipynb'))


@real_lists
def test_command_line_on_the_real_list(tmp_path):
    "Nothing is fetched: the mistakes are found before"
    def run(*args): return preloaded.run([sys.executable, '-m', 'kinetics_dance.study.cli', *map(str, args)], libraries='light', cwd=ROOT, capture_output=True, text=True)
    p = dict(study='k', runs=str(tmp_path/'runs'), annotations=[str(LISTS/'k700_2020_dancing_train.csv'), str(LISTS/'k700_2020_dancing_validate.csv')])
    (tmp_path/'k.yaml').write_text(json.dumps(p | dict(source='youtube', cookies=str(tmp_path/'none.txt'))))
    for args, says in ((('--source', 'youtub'), "did you mean 'youtube'?"), (('--train', 'x'), "--train: 'x' is neither"), ((), 'cookies')):
        r = run('download', '--study', tmp_path/'k.yaml', *args)
        assert r.returncode == 2 and says in r.stderr and len(r.stderr.splitlines()) == 1, r.stderr
    (tmp_path/'k.yaml').write_text(json.dumps(p | dict(source='cvdf', mirror='http://127.0.0.1:9/')))
    r = run('status', '--study', 'k', '--runs', tmp_path/'runs')
    assert r.returncode == 2 and 'has no clips yet' in r.stderr
