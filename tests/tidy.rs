//! The rules of this code base that a compiler does not check.
