"Package metadata lives in settings.ini; this file only hands it to setuptools."
from configparser import ConfigParser
from setuptools import setup, find_packages

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extra = '_requirements'

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'], url=cfg['git_url'],
    author=cfg['author'], author_email=cfg['author_email'], license='Apache-2.0', keywords=cfg['keywords'],
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path'] + '.*']), package_data={cfg['lib_path']: ['py.typed']}, python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={k[:-len(extra)]: v.split() for k, v in cfg.items() if k.endswith(extra)},
    long_description=open('README.md', encoding='utf-8').read(), long_description_content_type='text/markdown',
    entry_points={'console_scripts': cfg['console_scripts'].split(),
                  'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]},
)
