// The label head: from logits at 1/8 to the label of every pixel, the same labels as inference/label_head.py gives.
//
// The label of a pixel is the class with the highest value of the bilinear interpolation of the float32 logits, computed
// in double precision; the lowest of equal ones. The pixels between the same four logits form a cell, drawn in
// inference/label_head.py. Where one class is the highest at all four, every pixel of the cell has that class; elsewhere
// only a class whose highest corner reaches the best lowest corner of any class can win, mostly one of two or three.
//
// This file needs nothing of a browser: node runs it too.

// Where the pixels of one axis lie: pixel i is between the logits first[i] and second[i], which has the weight[i].
function layOut(length, size, alignCorners) {
  const first = new Int32Array(size);
  const second = new Int32Array(size);
  const weight = new Float64Array(size);
  for (let i = 0; i < size; i += 1) {
    const place = alignCorners ? (i * (length - 1)) / Math.max(size - 1, 1) : ((i + 0.5) * length) / size - 0.5;
    const before = Math.floor(place);
    first[i] = Math.max(before, 0);
    second[i] = Math.min(before + 1, length - 1);
    weight[i] = place - before;
  }
  return { first, second, weight, cells: cellsOf(first, second) };
}

// The runs of pixels between the same two logits, as [from, to) pairs.
function cellsOf(first, second) {
  const starts = [...first.keys()].filter((i) => i === 0 || first[i] !== first[i - 1] || second[i] !== second[i - 1]);
  return starts.map((start, n) => [start, starts[n + 1] ?? first.length]);
}

// The highest class at each logit, the lowest class of equal ones.
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
 * The class with the highest logit, after bilinear interpolation, of each pixel; the lowest class of equal ones.
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
          labels[y * size[1] + x] = names[highestAt(values, rows.weight[y], columns.weight[x])];
        }
      }
    }
  }
  return labels;
}

// Which of several classes, each with its values at four corners, is the highest at a pixel with these weights. The
// order of the operations is that of Python, so that both give the same label where two values are almost equal.
function highestAt(values, down, across) {
  let best = -Infinity;
  let winner = 0;
  for (let n = 0; n < values.length; n += 1) {
    const [a, b, c, d] = values[n];
    const left = a + down * (c - a);
    const right = b + down * (d - b);
    const value = left + across * (right - left);
    if (value > best) {
      best = value;
      winner = n;
    }
  }
  return winner;
}
