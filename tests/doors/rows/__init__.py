"""The table: every row is sent to every door."""

from tests.doors.rows.bodies import BODIES
from tests.doors.rows.caller import CALLER
from tests.doors.rows.endpoints import ENDPOINTS
from tests.doors.rows.extension import EXTENSION
from tests.doors.rows.fields import FIELDS
from tests.doors.rows.keys import KEY_ROWS

ROWS = [*ENDPOINTS, *BODIES, *FIELDS, *EXTENSION, *CALLER, *KEY_ROWS]
