//! Row views, frozen matrices, mapped weights, frames, the thread team.
