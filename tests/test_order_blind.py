"Networks that cannot know the order of frames: by construction, or because they are trained and tested on shuffled ones."
import json
import numpy as np, pandas as pd, pytest, torch
from kinetics_dance.models.registry import CONTROLS, MODELS, model_class
from kinetics_dance.models.order_blind import DeepSet
from kinetics_dance.video_transformer import VideoTransformer
from conftest import ROOT, tiny_study

TINY = dict(study='tiny', seeds=[0], epochs=2, lr=[.002], clip_frames=4, batch_size=4, controls=True)
BLIND = {'deep set': lambda **o: DeepSet(5, hidden=32, **o),
         **{f'{tokens} {pool}': lambda tokens=tokens, pool=pool, **o:
            VideoTransformer(5, width=32, tokens=tokens, pool=pool, ordered=False, **o)
            for tokens in ('features', 'tubelet') for pool in ('mean', 'token')}}


@pytest.fixture(scope='module')
def tiny(tmp_path_factory): return tiny_study(tmp_path_factory.mktemp('runs'), ('windmill', 'bounce'))


@pytest.fixture(scope='module')
def trained(tiny):
    "The same study with all controls"
    from kinetics_dance.training.runs import train_seeds
    for m in ('per_frame', *CONTROLS): train_seeds(m, TINY | dict(runs=str(tiny)))
    return tiny/'tiny'


def clips_of(run, split='test', **kw):
    from kinetics_dance.loading.dataloader import Clips
    from kinetics_dance.loading.reader import FrameStore
    from kinetics_dance.training.study_files import study_clips
    t = study_clips(run)
    return Clips(FrameStore(run/'frames'), t[t.split == split].sort_values('clip_id'), sorted(t.label.unique()), 4, **kw)


@pytest.mark.parametrize('name', BLIND)
@pytest.mark.parametrize('seed', range(3))
def test_no_permutation_changes_an_answer(name, seed):
    torch.manual_seed(seed)
    net = BLIND[name]().eval()
    t = int(torch.randint(2, 11, ()))
    x = torch.randn(2, t, 3, 44, 60)
    with torch.inference_mode():
        said = net(x)
        for _ in range(4):
            order = torch.stack([torch.randperm(t) for _ in x])
            other = net(x[torch.arange(2)[:, None], order])
            torch.testing.assert_close(other, said, atol=2e-5, rtol=0)
        assert (net(x.roll(1, 0))-said).abs().max() > 1e-4      # but it does look


def test_the_set_transformer_is_the_transformer_of_the_study():
    "The same network but for what tells it the order"
    net, blind = VideoTransformer(5), model_class(CONTROLS['set_transformer'].spec)(5, **CONTROLS['set_transformer'].arguments)
    a, b = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (net, blind))
    assert {k for k in a if a.get(k) != b.get(k)} == {'embed.when', 'embed.tubelet.weight'} and set(b) < set(a)


def test_orders_are_new_each_epoch_and_the_same_again(tiny):
    def seen(epoch, at, seed=0, **kw): return clips_of(tiny/'tiny', 'train', seed=seed, shuffle_frames=True, **kw).batch(at, epoch)[0]
    x = seen(3, [0, 4])
    assert torch.equal(seen(3, [4, 1, 0])[[2, 0]], x)           # by clip and epoch, whoever else is in the batch
    assert not torch.equal(seen(4, [0, 4]), x)
    plain = clips_of(tiny/'tiny', 'train', seed=0).batch([0, 4], 3)[0]
    def frames(x): return [sorted(f.numpy().tobytes() for f in c) for c in x]
    assert frames(plain) == frames(x) and not torch.equal(plain, x)     # the same frames, otherwise cropped alike


def test_each_process_shuffles_alike(tiny):
    "Workers fetch the batches that a training without workers sees"
    from kinetics_dance.loading.dataloader import ClipLoader
    def all_of(workers):
        loader = ClipLoader(clips_of(tiny/'tiny', 'train', seed=1, shuffle_frames=True), 4, True, workers)
        return [torch.cat([x for x, _ in loader]) for _ in range(2)]
    for a, b in zip(all_of(0), all_of(1)): assert torch.equal(a, b)


def test_a_shuffled_model_is_tested_on_shuffled_frames(trained):
    from kinetics_dance.evaluation.perturbations import predict_perturbed
    from kinetics_dance.loading.dataloader import frame_orders
    from kinetics_dance.models.config import read_model
    for name in ('shuffled_lstm', 'shuffled_transformer'):
        net, card = read_model(trained/'models'/name/'seed0')
        said = pd.read_parquet(trained/'predictions'/name/'seed0.parquet').query("split == 'test'").filter(regex='^p_').to_numpy()
        clips = clips_of(trained, shuffle_frames=True)
        assert card['shuffled_frames'] and np.allclose(predict_perturbed(net, clips, seed=0)['normal'], said, atol=1e-5)
        from kinetics_dance.loading.reader import normalise
        x, _ = clips_of(trained).batch(range(len(clips)), order=frame_orders(clips.ids, 4, 0))
        with torch.inference_mode(): p = net(normalise(x)).softmax(-1).numpy()
        assert np.allclose(p, said, atol=1e-5)


def test_a_control_that_was_trained_is_not_trained_again(trained):
    from kinetics_dance.training.runs import train_run
    run = TINY | dict(runs=str(trained.parent))
    for m in CONTROLS:
        before = json.loads((trained/'models'/m/'seed0'/'config.json').read_text())
        assert train_run(m, run, 0) == before and before['name'] == m
    keys = {json.loads((trained/'models'/m/'seed0'/'config.json').read_text())['key'] for m in CONTROLS}
    assert len(keys) == len(CONTROLS)


def test_controls_stay_out_of_the_verdicts(trained):
    from kinetics_dance.comparison import compare
    c = compare(trained, n_resamples=50)
    assert list(c.predictions.probs) == ['per_frame'] and not len(c.pairs)


def test_a_control_is_not_the_newest_model_and_watches_no_video(trained, monkeypatch):
    from kinetics_dance.core.base import StudyError
    from kinetics_dance.inference import Predictor
    from kinetics_dance.models import config
    monkeypatch.setattr(config, 'project_root', lambda: trained.parent.parent)
    (trained.parent.parent/'runs').symlink_to(trained.parent)
    assert config.find_model().parent.name == 'per_frame'
    with pytest.raises(StudyError, match="trained on shuffled frames"): Predictor.load(trained/'models'/'shuffled_lstm'/'seed0')


def test_a_study_without_controls_sets_them_aside(trained, tmp_path):
    import shutil
    from kinetics_dance.training.runs import forget_models
    run = tmp_path/'tiny'
    shutil.copytree(trained, run)
    forget_models(run, MODELS)
    assert {p.parent.name for p in (run/'models').glob('*/seed*/')} == {'per_frame'}
    assert {p.parent.name for p in (run/'models').glob('*/left_over.seed*/')} > {'shuffled_lstm'}


def test_the_runner_watches_what_a_stage_trains_beside_its_model():
    "Else predictions of controls could change and the comparison would stay as it was"
    from report.run import CONTROLS as by_stage
    assert sorted(m for ms in by_stage.values() for m in ms) == sorted(CONTROLS)
    for stage, names in by_stage.items():
        text = next((ROOT/'nbs').glob(f'{stage}_*.ipynb')).read_text()
        assert all(f"'{m}'" in text for m in names), stage


@pytest.mark.parametrize('kind', ['rendered dancers', 'Kinetics'])
def test_controls_are_of_the_size_of_what_they_stand_beside(kind):
    from kinetics_dance.core.settings import defaults
    from kinetics_dance.training.runs import model_sizes
    import yaml
    s = defaults() | ({} if kind == 'rendered dancers' else yaml.safe_load((ROOT/'studies'/'kinetics.yaml').read_text()))
    head = model_sizes(s, 15, [*MODELS, *CONTROLS]).set_index('model')['head']
    assert head.max() <= 2*head.min(), head.to_dict()
