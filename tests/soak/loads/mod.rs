//! The loads: programs of Debian's packages, and one script.

mod bench;
mod fio;
mod fsx;
mod postgres;
mod sqlite;
mod stress;
mod transactions;

use crate::party::Load;

/// Those of the short run.
pub(crate) const USUAL: [&dyn Load; 7] = [
    &fio::Fio,
    &stress::Stress,
    &bench::Dbench,
    &bench::Bonnie,
    &fsx::Fsx,
    &sqlite::WAL,
    &sqlite::ROLLBACK,
];

/// Those of the long one.
pub(crate) const ALL: [&dyn Load; 8] = {
    let [a, b, c, d, e, f, g] = USUAL;
    [a, b, c, d, e, f, g, &postgres::Postgres]
};
