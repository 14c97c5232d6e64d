"""x"""
import sys
from pathlib import Path
from jaxdnn.recipes import RECIPES
from jaxdnn import run_folder
from jaxdnn.training.run import train
import json, shutil
name=sys.argv[1]
shutil.rmtree(f"/tmp/runs/{name}",ignore_errors=True)
print(json.dumps(train(RECIPES[name], run_folder.create(Path(f"/tmp/runs/{name}"))),indent=1))
