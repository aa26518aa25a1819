"""Pictures as a start: read within bounds, brought to the size that is drawn, masked, and put together again."""

from sdcli.pictures.controls import check_control as check_control
from sdcli.pictures.controls import control_image as control_image
from sdcli.pictures.placing import Fitted as Fitted
from sdcli.pictures.placing import Start as Start
from sdcli.pictures.placing import check_mask as check_mask
from sdcli.pictures.placing import composited as composited
from sdcli.pictures.placing import drawn_size as drawn_size
from sdcli.pictures.placing import fitted as fitted
from sdcli.pictures.placing import mask_of as mask_of
from sdcli.pictures.placing import on_white as on_white
from sdcli.pictures.placing import outpainted as outpainted
from sdcli.pictures.placing import repainted as repainted
from sdcli.pictures.placing import softened as softened
from sdcli.pictures.placing import start as start
from sdcli.pictures.placing import uncovered as uncovered
from sdcli.pictures.reading import find as find
from sdcli.pictures.reading import open_picture as open_picture
from sdcli.pictures.reading import sha256_of as sha256_of
from sdcli.pictures.reading import size_of as size_of
from sdcli.pictures.reading import spooled as spooled
