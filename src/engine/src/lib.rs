//! Requests become steps, steps become tokens: the scheduler, the memory governor and the backends of glmd.
