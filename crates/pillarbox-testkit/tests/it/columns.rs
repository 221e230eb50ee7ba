//! Columns that users add: every type, columns that grow while events flow, computed columns, and values
//! that do not leave.

mod computed;
mod growing;
mod limits;
