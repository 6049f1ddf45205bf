//! An installation is backed up while it works, lost, and comes back; and every kind of damage to a backup is found
//! before anybody depends on it.

mod broken_off;
mod comes_back;
mod damage;
mod elsewhere;
mod meanwhile;
mod stage;
