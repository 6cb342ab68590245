"""Agreement with human votes.

`sources.load_battles` reads votes, `agreement.evaluate_battles` measures how far scores agree with
them, `calibration.calibrate` fits a preference head, `leaderboard.leaderboards` ranks systems, and
`words.findings` puts figures into words. The command line `apex-reward arena` does the same.
"""
