"""How good is it, how sure are we, what did it forget, what does it cost: metrics, intervals, calibration, baselines, audits."""
