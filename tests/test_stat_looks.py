"""What was decided before the test set was looked at, and how often it was: mistakes in one line, changes visible."""
import numpy as np, pytest
from kinetics_dance.core.base import StudyError
from kinetics_dance.evaluation.predictions import simulate
from kinetics_dance.evaluation.preregistration import log_look, read_looks, read_prereg, spent


@pytest.mark.parametrize('text, said', [
    ('margin: 0', 'margin: 0 is not above 0'), ('margin: 0.6', 'margin: 0.6 is not above 0'), ('margin: wide', "margin: cannot be 'wide'"),
    ('pairs: [[per_frame, lstm]]', "the study has no model 'lstm'"), ('pairs: [[per_frame]]', 'not two models'), ('looks: 0', 'looks: 0 is too small'),
    ('budgt: 5 runs', "unknown key 'budgt' (did you mean 'budget'?)"), ('a: [', 'not YAML'), ('- 1', 'expected keys'), ('looks: true', 'looks: cannot be True')])
def test_a_file_that_cannot_be(text, said, tmp_path):
    f = tmp_path/'toy.prereg.yaml'
    f.write_text(text)
    with pytest.raises(StudyError) as e: read_prereg(f, ['per_frame', 'cnn_lstm'])
    assert said in str(e.value) and str(e.value).startswith('toy.prereg.yaml: ') and '\n' not in str(e.value)


def test_changed_after_a_look_is_allowed_and_visible(tmp_path):
    from report.pages import looks_at
    f, p = tmp_path/'toy.prereg.yaml', simulate(np.random.default_rng(0), dict(a=.8), uploads=9)
    assert read_prereg(f) is None and looks_at([]) == ''
    f.write_text('margin: 0.02')
    log_look(tmp_path, p, read_prereg(f)); log_look(tmp_path, p, read_prereg(f))
    assert len(read_looks(tmp_path)) == 1
    f.write_text('margin: 0.03')
    looks = log_look(tmp_path, p, read_prereg(f))
    assert [(x['new'], x['changed']) for x in looks] == [(True, False), (False, True)]
    assert [x['new'] for x in log_look(tmp_path, simulate(np.random.default_rng(1), dict(a=.8), uploads=9), read_prereg(f))] == [True, False, True]
    assert '**changed**' in looks_at(looks) and looks[0]['predictions'] in looks_at(looks)


def test_a_line_that_was_cut_off_does_not_spoil_the_list(tmp_path):
    p = simulate(np.random.default_rng(0), dict(a=.8), uploads=9)
    log_look(tmp_path, p)
    with (tmp_path/'looks.jsonl').open('a') as f: f.write('{"when": "20')
    assert len(read_looks(tmp_path)) == 1


def test_the_level_is_spent_once():
    "Three looks at nothing: at most 5 % of studies find something at any of them"
    rng, levels = np.random.default_rng(0), [spent(.05, k, 3) for k in (1, 2, 3)]
    from scipy.stats import norm
    x = np.cumsum(rng.normal(size=(20_000, 3)), axis=1)/np.arange(1, 4)**.5
    assert sum(levels) == pytest.approx(.05) and (2*norm.sf(abs(x)) < levels).any(1).mean() <= .05 and spent(.05, 4, 3) == 0
