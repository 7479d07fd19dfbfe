"""RobustBench: submissions, and our published models under its names, which importing this registers."""

from piat_hub.leaderboard.submission import register

__all__ = ["register"]
