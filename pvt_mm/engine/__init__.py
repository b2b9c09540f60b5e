"""What MMEngine's runner lacks: configs read with care, and a run checked before it starts."""
