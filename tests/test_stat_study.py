"""What a study decides before it looks at its test set: the learning rate, what was written down, and the checks that its controls have to pass."""
import json
import numpy as np, pandas as pd, pytest
from conftest import ROOT
from kinetics_dance.core.base import StudyError
from kinetics_dance.evaluation.decomposition import decomposition_scores, expected_steps
from kinetics_dance.evaluation.predictions import TOY_PAIRS, simulate
from report.common import UserError, study_files

# --- the learning rate

TRIED = [dict(lr=x, valid_loss=y, top1=.5) for x, y in ((.0003, 1.2), (.001, 1.), (.003, 1.1), (.01, None))]


def best(*grid, allowed=False):
    from kinetics_dance.training.runs import _best_lr
    return _best_lr('lstm', TRIED, grid, allowed)


def test_a_rate_inside_of_the_grid_is_taken():
    assert best(.0003, .001, .003) == .001
    assert best(.001, .0003, .01) == .001                       # in any order; one that diverged is an end, too


@pytest.mark.parametrize('grid, said', [((.001, .003), 'the smallest that was tried'), ((.0003, .001), 'the largest that was tried'), ((.003, .01), 'the smallest')])
def test_a_rate_at_the_edge_is_an_error(grid, said):
    with pytest.raises(StudyError) as e: best(*grid)
    text = str(e.value)
    assert said in text and 'widen the grid' in text and 'allow_edge_lr: true' in text and 'lstm' in text and '\n' not in text
    assert best(*grid, allowed=True) in grid


def test_no_study_file_has_a_grid_without_an_inside():
    "Of two rates each is an edge, so a study that tries two has to say that it knows"
    import yaml
    for f in study_files(ROOT):
        s = yaml.safe_load(f.read_text())
        assert len(s.get('lr', [1, 2, 3])) != 2 or s.get('allow_edge_lr'), f.name


# --- transfer: a random backbone for each run, and what was chosen

def test_each_run_has_a_random_backbone_of_its_own(monkeypatch, tmp_path):
    from rehearsal import motion
    chosen = []
    def choose(head, p, log): chosen.append(p['weights']); return .003
    monkeypatch.setattr(motion, 'random_weights', lambda p, folder, seed: folder/f'{seed}.safetensors')
    monkeypatch.setattr(motion, 'choose_lr', choose)
    p = dict(seeds=[4, 5, 6], lr=[.001, .003, .01])
    own = [motion.with_random_weights(p, tmp_path, 'per_frame', s) for s in p['seeds']]
    assert len({x['weights'] for x in own}) == 3
    assert [x['lr'] for x in own] == [p['lr'], [.003], [.003]] and set(chosen) == {own[0]['weights']}


def test_random_backbones_differ(tmp_path, monkeypatch):
    import torch
    from rehearsal import motion
    class Frames:
        def __init__(self, at): pass
        def batch(self, ids): return np.zeros((len(ids), 2, 32, 32, 3), np.uint8)
    for d in 'xy': (tmp_path/d).mkdir()
    monkeypatch.setattr(motion, 'FrameStore', Frames)
    monkeypatch.setattr(motion, 'study_clips', lambda at: pd.DataFrame(dict(clip_id=[str(i) for i in range(8)], split='train')))
    monkeypatch.setattr(motion, 'make_backbone', lambda name: torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.BatchNorm2d(2)))
    a, b, again = (motion.random_weights(dict(backbone='x'), tmp_path/at, s, n=8).read_bytes() for at, s in (('x', 0), ('x', 1), ('y', 0)))
    assert a != b and a == again


def test_the_page_says_how_many_backbones_and_which_edges(tmp_path):
    from rehearsal.motion import drawn
    rows = [dict(weights=w, model=m, seed=s, lr=lr, test=.5, seconds=1.) for w, m, lr in (('ImageNet', 'per_frame', .003), ('random', 'per_frame', .0003)) for s in range(3)]
    pd.DataFrame(rows).to_csv(tmp_path/'transfer.csv', index=False)
    text = drawn(tmp_path)
    assert 'drawn once' in text and '1 of 2 rates were chosen at an edge' in text and 'random weights (0.0003)' in text
    pd.DataFrame([r | dict(backbone=r['seed']) for r in rows]).to_csv(tmp_path/'transfer.csv', index=False)
    grid = [dict(weights='random', model='per_frame', lr=x, valid_loss=y, top1=.5, chosen=x == .0003) for x, y in ((.0001, 1.3), (.0003, 1.2), (.01, None))]
    pd.DataFrame(grid).to_csv(tmp_path/'selection.csv', index=False)
    text = drawn(tmp_path)
    assert 'a random backbone of its own' in text and 'edge' not in text and '1.200 (chosen)' in text and 'diverged' in text


# --- what was written down

def test_a_preregistration_is_no_study():
    from kinetics_dance.study.settings import study_names, study_path
    from report.study import load_study
    there = {p.name for p in (ROOT/'studies').glob('*.yaml')}
    assert {'demo.prereg.yaml', 'motion.prereg.yaml'} <= there
    assert not any('prereg' in p.name for p in study_files(ROOT)) and [p.stem for p in study_files(ROOT)] == study_names(ROOT/'studies')
    for f in (lambda: study_path('studies/demo.prereg.yaml'), lambda: load_study(ROOT/'studies/demo.prereg.yaml', ROOT)):
        with pytest.raises((StudyError, UserError), match=r'demo\.prereg\.yaml:? is a preregistration.*demo\.yaml'): f()


@pytest.mark.parametrize('text, said', [('margin: 0', 'margin: 0 is not above 0'), ('pairs: [[per_frame, theirs]]', "no model 'theirs'"), ('pairs: [[per_frame, deep_set]]', "no model 'deep_set'")])
def test_it_is_checked_before_anything_is_downloaded(text, said, tmp_path, monkeypatch):
    from kinetics_dance.study.settings import read_settings
    (tmp_path/'settings.ini').write_text('[DEFAULT]\n')
    (tmp_path/'studies').mkdir()
    (tmp_path/'studies/mine.yaml').write_text('source: demo\n')
    (tmp_path/'studies/mine.prereg.yaml').write_text(text)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StudyError) as e: read_settings('mine')
    assert said in str(e.value) and 'mine.prereg.yaml' in str(e.value) and '\n' not in str(e.value)
    if 'theirs' in text:                                        # somebody has put predictions of another system there
        (tmp_path/'runs/mine/predictions/theirs').mkdir(parents=True)
        assert read_settings('mine')['study'] == 'mine'


def test_a_stage_knows_only_its_own_settings():
    "The notebook of the data asks for a check without saying whether there are controls, which motion's file names"
    from kinetics_dance.study.settings import check_study, read_settings
    with pytest.raises(StudyError, match='set_transformer'): check_study(read_settings('demo') | dict(study='motion', controls=False))
    assert check_study(dict(study='motion'))['study'] == 'motion'


def test_the_comparison_is_stale_when_it_changes(tmp_path):
    "Only the notebook that tests for a margin depends on it"
    from conftest import make_nb
    from report.run import Run
    from report.study import load_study
    for d in ('nbs', 'studies', 'toy', 'locks'): (tmp_path/d).mkdir()
    (tmp_path/'settings.ini').write_text((ROOT/'settings.ini').read_text().replace('kinetics_dance', 'toy'))
    (tmp_path/'toy/__init__.py').write_text('')
    (tmp_path/'locks/report.txt').write_text('papermill==2.7.0\n')
    (tmp_path/'studies/toy.yaml').write_text('study: toy\n')
    make_nb(tmp_path/'nbs/00_data.ipynb', ('parameters', "study = 'demo'"))
    make_nb(tmp_path/'nbs/05_comparison.ipynb', ('parameters', "study = 'demo'\nmargin = 0.02"))
    def inputs():
        r = Run(tmp_path, *load_study(tmp_path/'studies/toy.yaml', tmp_path)[:3], None)
        return [r.inputs(r.stages[s]).get('preregistration') for s in ('00_data', '05_comparison')]
    found, f = [inputs()], tmp_path/'studies/toy.prereg.yaml'
    for text in ('margin: 0.02', 'margin: 0.03'):
        f.write_text(text)
        found.append(inputs())
    assert [x[0] for x in found] == [None]*3 and len({x[1] for x in found}) == 3


def test_a_look_after_a_line_that_was_cut_off_is_kept(tmp_path):
    from kinetics_dance.evaluation.preregistration import log_look, read_looks
    looks = [simulate(np.random.default_rng(s), dict(a=.8), uploads=9) for s in range(3)]
    log_look(tmp_path, looks[0])
    log_look(tmp_path, looks[1])
    f = tmp_path/'looks.jsonl'
    whole = f.read_text()
    for cut in (whole.rindex('}}') + 1, len(whole) - 9):            # even where what is left ends like a whole line
        f.write_text(whole[:cut])
        assert [x['new'] for x in log_look(tmp_path, looks[2])] == [True, True]
        assert len(read_looks(tmp_path)) == 2 and read_looks(tmp_path)[1]['predictions'] != json.loads(whole.splitlines()[1])['predictions']


# --- the controls of the known answer

def shares(n, **truth):
    return expected_steps(decomposition_scores(simulate(np.random.default_rng(1), truth, uploads=n), None, TOY_PAIRS, n_resamples=20)).set_index('model')


def test_controls_have_to_be_shown_to_be_at_chance():
    "A control that leaks five points passed as long as its interval reached chance; where nothing was measured everything passed"
    sound = shares(1500, per_frame=.4, deep_set=.4, shuffled_lstm=.4)
    assert sound.passes.all() and sound.margin.to_dict() == dict(per_frame=.04, deep_set=.04, shuffled_lstm=.1)
    assert not shares(1500, per_frame=.4, deep_set=.55).passes['deep_set']
    assert not shares(10, per_frame=.5, deep_set=.5).passes.any()


def test_losses_of_the_choice_are_on_the_page_of_results():
    from report.results import selection
    rows = [dict(model='cnn_lstm', lr=x, valid_loss=y, top1=.5, chosen=x == .003, edge=x == .003) for x, y in ((.001, 1.123), (.003, 1.075), (.01, None))]
    text = selection(dict(selection=rows), {'cnn_lstm': {}})
    assert all(x in text for x in ('1.123', '1.075 (chosen), at the edge', 'diverged', '0.01')) and selection({}, {}) == ''


def test_more_looks_than_were_planned_are_exploratory():
    from kinetics_dance.evaluation.preregistration import level_of_look, spent
    looks = [dict(new=True), dict(new=False), dict(new=True)]
    assert level_of_look(looks, dict(looks=2)) == (spent(.05, 2, 2), f'The test set was looked at 2 times, this time included, of 2 that were planned; this look is tested at {spent(.05, 2, 2):.4f}.')
    level, said = level_of_look(looks, dict(looks=1))
    assert level == .05 and 'exploratory' in said and 'exploratory' not in level_of_look(looks, None)[1]
