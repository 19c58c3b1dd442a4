//! Tokens and chat text.
