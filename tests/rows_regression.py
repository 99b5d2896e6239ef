"""The contract rows of jaxent._regression."""

from contract_row import Row

ROWS: tuple[Row, ...] = ()
NOT_LOSSES: dict[str, str] = {}
