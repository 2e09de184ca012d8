"""The measure room: what fine-tuning changed in a model's abilities, outputs and weights. Each measure is a function.

It imports the rooms from tasks to distill, and neither train nor objectives. Start with outputs/gap.py (how surprising
the training targets are to the base model) or weights/shift.py (how far the weights moved). abilities.py runs the test
suites, statistics.py has the intervals and tests, passes.py the forward passes that the measures share.

    sdft measure shift --adapter runs/mine/sdft
"""
