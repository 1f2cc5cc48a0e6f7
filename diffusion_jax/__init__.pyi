"""The front door: what most users need, each from the room that it lives in."""

from .config import Config as Config
from .config import DataConfig as DataConfig
from .config import ModelConfig as ModelConfig
from .config import OutputConfig as OutputConfig
from .config import ScheduleConfig as ScheduleConfig
from .config import TrainingConfig as TrainingConfig
from .data import load_images as load_images
from .data.images import ImageSet as ImageSet
from .denoisers import Denoiser as Denoiser
from .denoisers import EmpiricalDenoiser as EmpiricalDenoiser
from .denoisers import EquivariantLocalDenoiser as EquivariantLocalDenoiser
from .denoisers import GaussianClassesDenoiser as GaussianClassesDenoiser
from .denoisers import GaussianDenoiser as GaussianDenoiser
from .denoisers import GaussianMixtureDenoiser as GaussianMixtureDenoiser
from .denoisers import GuidedDenoiser as GuidedDenoiser
from .denoisers import LocalDenoiser as LocalDenoiser
from .denoisers import SymmetricDenoiser as SymmetricDenoiser
from .denoisers import TrainedDenoiser as TrainedDenoiser
from .errors import UserError as UserError
from .nn.unet import UNet as UNet
from .presets import PRESETS as PRESETS
from .process import diffuse as diffuse
from .regimes.adaptive import adaptive_schedule as adaptive_schedule
from .regimes.cloning import fork as fork
from .regimes.neighbours import nearest as nearest
from .sampling import AncestralSampler as AncestralSampler
from .sampling import DDIMSampler as DDIMSampler
from .sampling import DPMSolver2M as DPMSolver2M
from .sampling import Sampler as Sampler
from .sampling import sample as sample
from .sampling.likelihood import image_bits as image_bits
from .sampling.respacing import with_calls as with_calls
from .schedule import NoiseSchedule as NoiseSchedule
from .schedule import constant_schedule as constant_schedule
from .schedule import cosine_schedule as cosine_schedule
from .schedule import linear_schedule as linear_schedule
from .study import Study as Study
from .study import analyse as analyse
from .symmetry import Group as Group
from .training.loop import train as train
from .training.run import load_model as load_model
from .training.updates import updates as updates

__version__: str
