"""Sweeps: base configs x options x seeds, a training each, run by submitit on this machine or under Slurm."""
