//! Deterministic least squares for a handful of non-negative parameters.
//!
//! Levenberg and Marquardt's method (Marquardt 1963, *J. SIAM* 11(2)) with a central-difference
//! Jacobian. Parameters are solved in units of their start values, so that seconds per pair
//! (1e-9) and tile rows (1e2) weigh alike, and are held at 0 or above after each move. Only
//! `+ - * /`, `sqrt` and comparisons: the same input gives the same bits everywhere.

/// Moves tried before the search gives up; the fits of this crate take 10 to 60.
const MAX_MOVES: usize = 500;

/// Parameters near `start` that minimise the sum of squared `residuals`.
///
/// Every start value is positive; it is the unit of its parameter. `residuals` always returns
/// the same number of values, no fewer than there are parameters.
pub(super) fn minimise(start: &[f64], residuals: impl Fn(&[f64]) -> Vec<f64>) -> Vec<f64> {
    let at = |units: &[f64]| {
        residuals(&units.iter().zip(start).map(|(unit, scale)| unit * scale).collect::<Vec<_>>())
    };
    let mut units = vec![1.0; start.len()];
    let mut damping = 1e-3;
    let mut current = at(&units);
    let mut cost = sum_of_squares(&current);
    for _ in 0..MAX_MOVES {
        let (mut normal, mut gradient) = normal_equations(&units, &current, &at);
        hold_at_bound(&units, &mut normal, &mut gradient);
        let Some(step) = solve(damped(&normal, damping), &gradient) else {
            damping *= 10.0;
            continue;
        };
        let moved: Vec<f64> =
            units.iter().zip(&step).map(|(unit, step)| (unit - step).max(0.0)).collect();
        let candidate = at(&moved);
        let candidate_cost = sum_of_squares(&candidate);
        if candidate_cost < cost {
            let gain = (cost - candidate_cost) / cost;
            (units, current, cost) = (moved, candidate, candidate_cost);
            damping = (damping * 0.2).max(1e-12);
            if gain < 1e-13 {
                break;
            }
        } else {
            damping *= 10.0;
            if damping > 1e12 {
                break;
            }
        }
    }
    units.iter().zip(start).map(|(unit, scale)| unit * scale).collect()
}

/// `J'J` and `J'r` at `units`.
fn normal_equations(
    units: &[f64],
    current: &[f64],
    at: &impl Fn(&[f64]) -> Vec<f64>,
) -> (Vec<Vec<f64>>, Vec<f64>) {
    let columns: Vec<Vec<f64>> = (0..units.len())
        .map(|index| {
            let half = 1e-6 * units[index].max(1e-3);
            let shifted = |by: f64| {
                let mut moved = units.to_vec();
                moved[index] += by;
                at(&moved)
            };
            let (above, below) = (shifted(half), shifted(-half));
            above.iter().zip(&below).map(|(a, b)| (a - b) / (2.0 * half)).collect()
        })
        .collect();
    let normal =
        columns.iter().map(|left| columns.iter().map(|right| dot(left, right)).collect()).collect();
    let gradient = columns.iter().map(|column| dot(column, current)).collect();
    (normal, gradient)
}

/// Takes parameters at 0 that the gradient would push below out of this move, so that the others
/// move as if those were not there.
fn hold_at_bound(units: &[f64], normal: &mut [Vec<f64>], gradient: &mut [f64]) {
    for held in 0..units.len() {
        if units[held] > 0.0 || gradient[held] <= 0.0 {
            continue;
        }
        gradient[held] = 0.0;
        for row in &mut *normal {
            row[held] = 0.0;
        }
        normal[held].fill(0.0);
        normal[held][held] = 1.0;
    }
}

/// Marquardt's damping: the diagonal grows by a factor, and by a trace more so that a parameter
/// without effect does not make the system singular.
fn damped(normal: &[Vec<f64>], damping: f64) -> Vec<Vec<f64>> {
    let mut matrix = normal.to_vec();
    for (index, row) in matrix.iter_mut().enumerate() {
        row[index] += damping * (row[index] + 1e-12);
    }
    matrix
}

/// Solution of `matrix * x = rhs` by elimination with partial pivoting; `None` if singular.
fn solve(mut matrix: Vec<Vec<f64>>, rhs: &[f64]) -> Option<Vec<f64>> {
    let size = rhs.len();
    let mut rhs = rhs.to_vec();
    for column in 0..size {
        let pivot = (column..size).fold(column, |best, row| {
            if matrix[row][column].abs() > matrix[best][column].abs() { row } else { best }
        });
        if matrix[pivot][column] == 0.0 {
            return None;
        }
        matrix.swap(column, pivot);
        rhs.swap(column, pivot);
        for row in column + 1..size {
            let factor = matrix[row][column] / matrix[column][column];
            let (above, below) = matrix.split_at_mut(row);
            for (entry, pivot) in below[0].iter_mut().zip(&above[column]).skip(column) {
                *entry -= factor * pivot;
            }
            rhs[row] -= factor * rhs[column];
        }
    }
    for row in (0..size).rev() {
        let known: f64 = (row + 1..size).map(|other| matrix[row][other] * rhs[other]).sum();
        rhs[row] = (rhs[row] - known) / matrix[row][row];
    }
    Some(rhs)
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(l, r)| l * r).sum()
}

fn sum_of_squares(values: &[f64]) -> f64 {
    dot(values, values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_exactly() {
        let found = minimise(&[1.0, 1e-9], |p| {
            (0..10).map(|x| p[0] + p[1] * 1e9 * f64::from(x) - (3.0 + 0.5 * f64::from(x))).collect()
        });
        assert!((found[0] - 3.0).abs() < 1e-9, "{found:?}");
        assert!((found[1] - 0.5e-9).abs() < 1e-18, "{found:?}");
    }

    #[test]
    fn a_parameter_that_would_be_negative_stays_at_zero() {
        let found = minimise(&[1.0, 1.0], |p| {
            (0..10).map(|x| p[0] + p[1] * f64::from(x) - (5.0 - 0.1 * f64::from(x))).collect()
        });
        assert!(found[1].abs() < 1e-12, "{found:?}");
        assert!((found[0] - 4.55).abs() < 1e-6, "the mean of the line: {found:?}");
    }

    #[test]
    fn a_nonlinear_curve_is_found() {
        let curve = |a: f64, b: f64, x: f64| (a * a + b * b * x * x).sqrt();
        let found = minimise(&[1.0, 1.0], |p| {
            (0..20)
                .map(|x| curve(p[0], p[1], f64::from(x)) - curve(7.0, 2.0, f64::from(x)))
                .collect()
        });
        assert!((found[0] - 7.0).abs() < 1e-6 && (found[1] - 2.0).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn an_idle_parameter_keeps_its_start() {
        let found = minimise(&[1.0, 42.0], |p| (0..3).map(|_| p[0] - 2.0).collect());
        assert!((found[0] - 2.0).abs() < 1e-9 && (found[1] - 42.0).abs() < 1e-9, "{found:?}");
    }
}
