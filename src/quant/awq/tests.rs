//! Tests of AWQ's maths. Floor 2.
