// The label head: from logits at 1/8 to the label of every pixel, as inference/label_head.py computes it.
//
// Between four neighbouring logits (a cell, about 8x8 pixels) bilinear interpolation is a convex combination of them.
// Where all four have the same highest class, every pixel of the cell has it too; elsewhere only a class whose highest
// corner reaches the best lowest corner of any class can win, mostly one of two or three. Both hold with rounding too:
// all values are computed in the same steps, and each step rises with what goes into it.
//
// This file needs nothing of a browser: node runs it too.

const { fround } = Math;

// Where the pixels of one axis lie: pixel i is at weight0[i] * logit first[i] + weight1[i] * logit second[i].
//
// Weights, and values further below, are rounded as PyTorch rounds them on x86: all in single precision, with fused
// multiply-add, which `fround(a * b + c)` is in double precision. Near-ties are then settled as PyTorch settles them, but
// for very small pictures, where it computes in another order.
function layOut(length, size, alignCorners) {
  const first = new Int32Array(size);
  const second = new Int32Array(size);
  const weight0 = new Float32Array(size);
  const weight1 = new Float32Array(size);
  const step = alignCorners ? fround((length - 1) / Math.max(size - 1, 1)) : fround(length / size);
  for (let i = 0; i < size; i += 1) {
    const place = alignCorners ? fround(step * i) : Math.max(fround(step * (i + 0.5) - 0.5), 0);
    first[i] = Math.min(Math.floor(place), length - 1);
    second[i] = Math.min(first[i] + 1, length - 1);
    weight1[i] = Math.min(fround(place - first[i]), 1);
    weight0[i] = 1 - weight1[i];
  }
  return { first, second, weight0, weight1, cells: cellsOf(first) };
}

// The runs of pixels between the same two logits, as [from, to) pairs.
function cellsOf(first) {
  const starts = [...first.keys()].filter((i) => i === 0 || first[i] !== first[i - 1]);
  return starts.map((start, n) => [start, starts[n + 1] ?? first.length]);
}

// The highest class at each logit.
function highestClasses(logits, classes, plane) {
  if (!logits.every(Number.isFinite)) {
    throw new Error("the network gave values that are not numbers");
  }
  const seen = new Uint8Array(plane);
  const best = logits.slice(0, plane);
  for (let k = 1; k < classes; k += 1) {
    for (let at = 0; at < plane; at += 1) {
      if (logits[k * plane + at] > best[at]) {
        best[at] = logits[k * plane + at];
        seen[at] = k;
      }
    }
  }
  return seen;
}

// The classes that can be the highest somewhere between four corners, in order.
function mayWin(logits, classes, plane, [a, b, c, d]) {
  const tops = [];
  let least = -Infinity;
  for (let k = 0; k < classes; k += 1) {
    const base = k * plane;
    const [one, two, three, four] = [logits[base + a], logits[base + b], logits[base + c], logits[base + d]];
    tops.push(Math.max(one, two, three, four));
    least = Math.max(least, Math.min(one, two, three, four));
  }
  return [...tops.keys()].filter((k) => tops[k] >= least);
}

/**
 * The class with the highest logit, after bilinear interpolation, of each pixel; of equal ones, one.
 *
 * @param {Float32Array} logits classes x height x width values
 * @param {[number, number, number]} shape classes (at most 256), height and width of the logits
 * @param {[number, number]} size height and width of the picture
 * @param {boolean} alignCorners how PyTorch's interpolate is told to place the corners
 * @returns {Uint8Array} a label for each pixel, row by row
 * @throws {Error} a logit is infinite or not a number
 */
export function labelsFromLogits(logits, shape, size, alignCorners) {
  const [classes, height, width] = shape;
  const plane = height * width;
  const seen = highestClasses(logits, classes, plane);
  const rows = layOut(height, size[0], alignCorners);
  const columns = layOut(width, size[1], alignCorners);
  const labels = new Uint8Array(size[0] * size[1]);
  for (const [top, bottom] of rows.cells) {
    const upper = rows.first[top] * width;
    const lower = rows.second[top] * width;
    for (const [left, right] of columns.cells) {
      const [p, q] = [columns.first[left], columns.second[left]];
      const corners = [upper + p, upper + q, lower + p, lower + q];
      const label = seen[corners[0]];
      if (corners.every((at) => seen[at] === label)) {
        for (let y = top; y < bottom; y += 1) {
          labels.fill(label, y * size[1] + left, y * size[1] + right);
        }
        continue;
      }
      const names = mayWin(logits, classes, plane, corners);
      const values = names.map((k) => corners.map((at) => logits[k * plane + at]));
      for (let y = top; y < bottom; y += 1) {
        for (let x = left; x < right; x += 1) {
          const winner = highestAt(values, rows.weight0[y], rows.weight1[y], columns.weight0[x], columns.weight1[x]);
          labels[y * size[1] + x] = names[winner];
        }
      }
    }
  }
  return labels;
}

// Which of several classes, each with its values at four corners, is the highest at a pixel with these weights.
function highestAt(values, down0, down1, across0, across1) {
  let best = -Infinity;
  let winner = 0;
  for (let n = 0; n < values.length; n += 1) {
    const [a, b, c, d] = values[n];
    const upper = fround(across0 * a + fround(across1 * b));
    const lower = fround(across0 * c + fround(across1 * d));
    const value = fround(down0 * upper + fround(down1 * lower));
    if (value > best) {
      best = value;
      winner = n;
    }
  }
  return winner;
}
