//! Medians with their spread.

use std::fmt;

/// Values of one kind, in the order in which they were measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures(Vec<f64>);

impl FromIterator<f64> for Figures {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

impl Figures {
    /// No values yet.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// One more.
    pub fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// The value that this share of the values does not exceed (nearest rank).
    ///
    /// # Panics
    /// When there are no values.
    pub fn quantile(&self, share: f64) -> f64 {
        assert!(!self.0.is_empty(), "no values");
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted[rank.clamp(1, sorted.len()) - 1]
    }

    /// The middle value; of an even number the mean of the two in the middle.
    ///
    /// # Panics
    /// When there are no values.
    pub fn median(&self) -> f64 {
        assert!(!self.0.is_empty(), "no values");
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        }
    }

    /// Every value by a factor, for another unit.
    #[must_use]
    pub fn times(&self, factor: f64) -> Self {
        Self(self.0.iter().map(|value| value * factor).collect())
    }

    /// Pair by pair, ours over the yardstick's.
    ///
    /// # Panics
    /// When they are not pairs.
    #[must_use]
    pub fn over(&self, yardstick: &Self) -> Self {
        assert_eq!(self.count(), yardstick.count(), "not pairs");
        Self(
            self.0
                .iter()
                .zip(&yardstick.0)
                .map(|(ours, theirs)| ours / theirs)
                .collect(),
        )
    }
}

impl fmt::Display for Figures {
    /// `median [min–max]` in three significant digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (low, high) = (self.quantile(0.0), self.quantile(1.0));
        let text = format!("{} [{}–{}]", short(self.median()), short(low), short(high));
        f.pad(&text)
    }
}

fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        large if large >= 100.0 => format!("{value:.0}"),
        large if large >= 10.0 => format!("{value:.1}"),
        large if large >= 1.0 => format!("{value:.2}"),
        large if large >= 0.1 => format!("{value:.3}"),
        _ => format!("{value:.4}"),
    }
}

/// Prints a table: a name, then one text per column.
pub fn table(head: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or_default()
    };
    let print = |cells: &[String]| {
        let padded: Vec<String> = cells
            .iter()
            .enumerate()
            .map(|(column, cell)| format!("{cell:<width$}", width = width(column)))
            .collect();
        println!("| {} |", padded.join(" | "));
    };
    print(&head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>());
    print(
        &(0..head.len())
            .map(|column| "-".repeat(width(column)))
            .collect::<Vec<_>>(),
    );
    for row in rows {
        print(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(values: &[f64]) -> Figures {
        Figures(values.to_vec())
    }

    #[test]
    fn the_median_and_the_ranks() {
        assert_eq!(figures(&[3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(figures(&[4.0, 1.0, 2.0, 3.0]).median(), 2.5);
        let hundred = figures(&(1..=100).map(f64::from).collect::<Vec<_>>());
        assert_eq!(
            (hundred.quantile(0.5), hundred.quantile(0.99), hundred.quantile(1.0)),
            (50.0, 99.0, 100.0)
        );
        assert_eq!(hundred.quantile(0.0), 1.0);
    }

    #[test]
    fn a_ratio_is_that_of_the_pairs() {
        let ratio = figures(&[1.0, 4.0, 9.0]).over(&figures(&[2.0, 4.0, 3.0]));
        assert_eq!(ratio.to_string(), "1.00 [0.500–3.00]");
    }
}
