/* What `kernels.c` compiles for each set of instructions. */

#define vector NAME(vector)
#define integers NAME(integers)
#define half NAME(half)
#define doubles NAME(doubles)
#define WIDTH (TILE_VECTORS * LANES)
#define TILE (TILE_LINES * WIDTH)
#define DEPTH 256
#define PLACES 16
#define STRIP 128
typedef float vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t integers __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef float half __attribute__((vector_size(2 * LANES)));
typedef double doubles __attribute__((vector_size(4 * LANES)));

static inline vector NAME(load)(const float *from) { return *(const vector *)from; }
static inline void NAME(store)(float *to, vector value) { *(vector *)to = value; }
static inline vector NAME(all)(float value) { return (vector){0} + value; }
#define load NAME(load)
#define store NAME(store)
#define all NAME(all)

static double NAME(sum)(doubles value)
{
    double found = 0.0;
    for (int i = 0; i < LANES / 2; i++)
        found += value[i];
    return found;
}

/* The numbers of a vector in two halves, added up at double precision. */
static inline doubles NAME(widened)(vector value)
{
    half low = *(half *)&value, high = *((half *)&value + 1);
    return __builtin_convertvector(low, doubles) + __builtin_convertvector(high, doubles);
}

/* Adds to, or begins, a tile of left^T right over `depth` places: left [depth, TILE_LINES], right
   [depth, WIDTH]. Returns the squares of what it holds then, added up in part. The lines of `soon`, as many as a
   tile has, are fetched meanwhile, and the next tile. */
static inline __attribute__((always_inline)) doubles
NAME(multiply)(const float *left, const float *right, int64_t depth, float *tile, int begun, const float *soon,
               int64_t soon_line)
{
    vector sums[TILE_LINES][TILE_VECTORS];
    for (int i = 0; i < TILE_LINES; i++)
        for (int j = 0; j < TILE_VECTORS; j++)
            sums[i][j] = begun ? load(tile + i * WIDTH + j * LANES) : (vector){0};
    for (int64_t place = 0; place < depth; place++) {
        vector seen[TILE_VECTORS];
        if (place % 4 == 0 && place < 4 * 2 * TILE_LINES) {
            __builtin_prefetch(soon + place / 8 * soon_line + place / 4 % 2 * 16, 1, 3);
            __builtin_prefetch(tile + TILE + place / 4 * 16, 1, 3);
        }
        for (int j = 0; j < TILE_VECTORS; j++)
            seen[j] = load(right + place * WIDTH + j * LANES);
        for (int i = 0; i < TILE_LINES; i++)
            for (int j = 0; j < TILE_VECTORS; j++)
                sums[i][j] += left[place * TILE_LINES + i] * seen[j];
    }
    for (int i = 0; i < TILE_LINES; i++)
        for (int j = 0; j < TILE_VECTORS; j++)
            store(tile + i * WIDTH + j * LANES, sums[i][j]);
    vector squares = {0};
    for (int i = 0; i < TILE_LINES; i++)
        for (int j = 0; j < TILE_VECTORS; j++)
            squares += sums[i][j] * sums[i][j];
    return NAME(widened)(squares);
}

/* Adds a tile times a factor to a sum; of factor 0 the tile, whose values may not be finite, is not read. */
static void NAME(put)(float *total, int64_t line, int64_t lines, int64_t columns, const float *tile, float factor,
                      int begun)
{
    for (int64_t i = 0; i < lines; i++, total += line, tile += WIDTH) {
        int64_t j = 0;
        if (factor == 0.0f) {
            if (!begun)
                memset(total, 0, columns * sizeof *total);
            continue;
        }
        for (; j + LANES <= columns; j += LANES) {
            vector value = factor * load(tile + j);
            if (begun)
                value += load(total + j);
            store(total + j, value);
        }
        for (; j < columns; j++)
            total[j] = factor * tile[j] + (begun ? total[j] : 0.0f);
    }
}

/* The tiles of a gradient that a thread works on, and where the sum for them is. */
struct NAME(slice) {
    int64_t m0, m1, n0, n1, per;                    /* per: columns of tiles for each run of features */
};
#define slice NAME(slice)

/* Lays features [first, end) of left at `depth` places out as [tiles, depth, TILE_LINES], times a weight, and adds
   them up by feature where `sums` is given. Some places at a time, so that memory is read along its lines. */
static void NAME(lay_left)(const struct clip *c, const float *left, int64_t first, int64_t end, int64_t depth,
                           float weight, float *to, float *sums)
{
    const int64_t place = c->left_place, feature = c->left_feature;
    for (int64_t t0 = 0; t0 < depth; t0 += PLACES)
        for (int64_t m = first; m < end; m += TILE_LINES) {
            const float *from = left + m * feature;
            float *at = to + (m - first) * depth, sum[TILE_LINES] = {0};
            const int64_t lines = least(end - m, TILE_LINES), t1 = least(t0 + PLACES, depth);
            if (lines == TILE_LINES && feature == 1) {
                for (int64_t t = t0; t < t1; t++)
                    for (int i = 0; i < TILE_LINES; i++)
                        sum[i] += at[t * TILE_LINES + i] = weight * from[t * place + i];
            } else if (lines == TILE_LINES && place == 1 && (t1 - t0) % 4 == 0) {
                for (int i = 0; i < TILE_LINES; i += 4)
                    for (int64_t t = t0; t < t1; t += 4) {
                        __m128 added = turn(from + t + i * feature, feature, weight, at + t * TILE_LINES + i, TILE_LINES);
                        _mm_storeu_ps(sum + i, _mm_add_ps(_mm_loadu_ps(sum + i), added));
                    }
            } else {
                for (int64_t t = t0; t < t1; t++)
                    for (int i = 0; i < TILE_LINES; i++)
                        sum[i] += at[t * TILE_LINES + i] = i < lines ? weight * from[t * place + i * feature] : 0.0f;
            }
            for (int i = 0; sums && i < lines; i++)
                sums[m - first + i] += sum[i];
        }
}

/* Lays columns [n0, n1) of tiles of right out as [columns, depth, WIDTH]: what is seen from `depth` places on from
   the first. */
static void NAME(lay_right)(const struct clip *c, const struct slice *s, const float *right, int64_t line,
                            int64_t place, int64_t first, int64_t depth, float *to)
{
    for (int64_t t0 = 0; t0 < depth; t0 += PLACES)
        for (int64_t n = s->n0; n < s->n1; n++) {
            const int64_t from_run = n / s->per, feature = n % s->per * WIDTH, across = runs(c) / c->kernel_v;
            const int64_t columns = least(run(c) - feature, WIDTH), t1 = least(t0 + PLACES, depth);
            const float *from = right + from_run / across * c->high * line + from_run % across * c->wide * place
                                + feature;
            float *at = to + ((n - s->n0) * depth + t0) * WIDTH;
            int64_t v = (first + t0) / c->places, h = (first + t0) % c->places;
            for (int64_t t = t0; t < t1; t++, at += WIDTH) {
                const float *seen = from + v * c->down * line + h * c->across * place;
                if (columns == WIDTH)
                    for (int j = 0; j < TILE_VECTORS; j++)
                        store(at + j * LANES, load(seen + j * LANES));
                else
                    for (int64_t j = 0; j < WIDTH; j++)
                        at[j] = j < columns ? seen[j] : 0.0f;
                if (++h == c->places)
                    h = 0, v++;
            }
        }
}

static int64_t NAME(lines)(const struct clip *c) { return parts(c->m, TILE_LINES); }
static int64_t NAME(columns)(const struct clip *c) { return runs(c) * parts(run(c), WIDTH); }
static int64_t NAME(depth)(const struct clip *c) { return least(c->lines * c->places, DEPTH); }

/* Threads share lines or columns of tiles: what can be divided more evenly, else what there is more of. */
static struct slice NAME(divide)(const struct clip *c, const struct team *team)
{
    int64_t lines = NAME(lines)(c), columns = NAME(columns)(c), count = team->count;
    struct slice s = {0, lines, 0, columns, parts(run(c), WIDTH)};
    int64_t by_line = parts(lines, count) * columns, by_column = parts(columns, count) * lines;
    if (by_line < by_column || (by_line == by_column && c->m > columns * WIDTH))
        s.m0 = share(lines, team->own, count), s.m1 = share(lines, team->own + 1, count);
    else
        s.n0 = share(columns, team->own, count), s.n1 = share(columns, team->own + 1, count);
    return s;
}

/* What a thread lays out of left and of right, and its sums for a bias. */
static int64_t NAME(scratch_of_thread)(const struct clip *c)
{
    const int64_t features = NAME(lines)(c) * TILE_LINES;
    return NAME(depth)(c) * (features + NAME(columns)(c) * WIDTH) + features;
}

/* Two squares of each thread in float64, two rows of right, the tiles of a gradient, and that of each thread. */
static int64_t NAME(scratch_together)(const struct clip *c)
{
    return 4 * c->threads + 2 * laid_numbers(c) + NAME(lines)(c) * NAME(columns)(c) * TILE
           + c->threads * NAME(scratch_of_thread)(c);
}

static float *NAME(place)(const struct clip *c, const struct slice *s, int64_t m, int64_t n)
{
    return c->total + (n / s->per * c->m + m * TILE_LINES) * run(c) + n % s->per * WIDTH;
}

static void NAME(settle)(const struct clip *c, const struct slice *s, int64_t m, int64_t n, const float *tile,
                         float factor, int begun)
{
    int64_t lines = least(c->m - m * TILE_LINES, TILE_LINES);
    int64_t columns = least(run(c) - n % s->per * WIDTH, WIDTH);
    NAME(put)(NAME(place)(c, s, m, n), run(c), lines, columns, tile, factor, begun);
}

/* All threads work on one unit after the other, each on its tiles. */
static void NAME(clip_together)(const struct clip *c, const struct team *team)
{
    const struct slice s = NAME(divide)(c, team);
    const int64_t depth = NAME(depth)(c), all_lines = NAME(lines)(c);
    const int64_t all_columns = NAME(columns)(c), laid = laid_numbers(c);
    const int64_t count = c->lines * c->places, padded = c->seen_lines + 2 * c->pad_v;
    const int64_t line = laid ? (c->seen_places + 2 * c->pad_h) * c->channels : c->right_line;
    const int64_t place = laid ? c->channels : c->right_place;
    const int64_t first_feature = s.m0 * TILE_LINES, end_feature = least(s.m1 * TILE_LINES, c->m);
    /* The sums for a bias are those of whoever has the first columns of tiles. */
    const int64_t features = c->bias && s.n0 == 0 && s.n1 ? end_feature - first_feature : 0;
    double *const squares = (double *)c->scratch;
    float *const shared = c->scratch + 4 * c->threads, *const tiles = shared + 2 * laid;
    float *const own_tiles = tiles + (s.m0 * (s.n1 - s.n0) + s.n0 * (s.m1 - s.m0)) * TILE;
    float *const left = tiles + all_lines * all_columns * TILE + team->own * NAME(scratch_of_thread)(c);
    float *const right = left + depth * all_lines * TILE_LINES, *const sums = right + depth * all_columns * WIDTH;
    float before = 0.0f;
    int64_t turn = 0;
    for (int64_t unit = 0; unit < c->units; unit++) {
        doubles found = {0};
        int fresh = 1;
        memset(sums, 0, features * sizeof *sums);
        for (int64_t r = c->starts[unit]; r < c->starts[unit + 1]; r++) {
            const int final_row = r + 1 == c->starts[unit + 1];
            const float weight = (float)c->weights[r];
            const float *from = c->left + c->rows[r] * c->left_row;
            const float *seen = c->right + c->rows[r] * c->right_row;
            if (laid) {
                float *to = shared + turn++ % 2 * laid;
                lay_out(c, seen, share(padded, team->own, team->count),
                              share(padded, team->own + 1, team->count), to);
                team->wait();
                seen = to;
            }
            for (int64_t first = 0; first < count; first += depth) {
                const int64_t deep = least(count - first, depth);
                const int final = final_row && first + deep == count;
                NAME(lay_left)(c, from + first * c->left_place, first_feature, end_feature, deep, weight, left,
                               features ? sums : NULL);
                NAME(lay_right)(c, &s, seen, line, place, first, deep, right);
                float *tile = own_tiles;
                for (int64_t n = s.n0; n < s.n1; n++)
                    for (int64_t m = s.m0; m < s.m1; m++, tile += TILE) {
                        const float *soon = tile;
                        if (c->total)
                            soon = NAME(place)(c, &s, m + 1 < s.m1 ? m + 1 : s.m0,
                                               m + 1 < s.m1 || n + 1 == s.n1 ? n : n + 1);
                        if (fresh && unit && c->total)
                            NAME(settle)(c, &s, m, n, tile, before, unit > 1 || c->begun);
                        doubles part = NAME(multiply)(left + (m - s.m0) * deep * TILE_LINES,
                                                      right + (n - s.n0) * deep * WIDTH, deep, tile, !fresh, soon,
                                                      run(c));
                        if (final)
                            found += part;
                    }
                fresh = 0;
            }
        }
        double square = NAME(sum)(found);
        for (int64_t k = 0; k < features; k++)
            square += (double)sums[k] * sums[k];
        squares[unit % 2 * team->count + team->own] = square;
        team->wait();
        square = c->others[unit];
        for (int64_t thread = 0; thread < team->count; thread++)
            square += squares[unit % 2 * team->count + thread];
        if (team->own == 0)
            c->squares[unit] = square;
        if (!c->total)
            continue;
        const double factor = clip_factor(square, c->within * c->bounds[unit]);
        before = (float)factor;
        if (team->own == 0)
            c->factors[unit] = factor;
        for (int64_t k = 0; k < features; k++) {
            float *to = c->bias + first_feature + k;
            *to = (before ? before * sums[k] : 0.0f) + (unit || c->bias_begun ? *to : 0.0f);
        }
    }
    const float *tile = own_tiles;
    for (int64_t n = s.n0; c->total && n < s.n1; n++)
        for (int64_t m = s.m0; m < s.m1; m++, tile += TILE)
            NAME(settle)(c, &s, m, n, tile, before, c->units > 1 || c->begun);
}

/* What each of some threads needs to work on units of its own, without the sums. */
static int64_t NAME(scratch_alone)(const struct clip *c)
{
    struct clip alone = *c;
    alone.threads = 1;
    return NAME(scratch_together)(&alone);
}

static int64_t NAME(clip_scratch)(const struct clip *c)
{
    if (!apart(c))
        return NAME(scratch_together)(c);
    return c->threads * (NAME(scratch_alone)(c) + runs(c) * c->m * run(c) + c->m);
}

/* Threads work on units of their own, and add up what they have in the end. */
static void NAME(clip_apart)(const struct clip *c, const struct team *team)
{
    const struct team alone = {0, 1, no_wait};
    const int64_t size = runs(c) * c->m * run(c), sums = size + c->m, scratch = NAME(scratch_alone)(c);
    const int64_t first = share(c->units, team->own, team->count), end = share(c->units, team->own + 1, team->count);
    float *const all_sums = c->scratch + c->threads * scratch, *const own_sums = all_sums + team->own * sums;
    struct clip own = *c;
    own.scratch = c->scratch + team->own * scratch, own.threads = 1;
    own.starts += first, own.others += first, own.bounds += first, own.squares += first, own.factors += first;
    own.units = end - first;
    own.total = c->total ? own_sums : NULL, own.begun = 0;
    own.bias = c->bias ? own_sums + size : NULL, own.bias_begun = 0;
    if (own.bias)
        memset(own.bias, 0, c->m * sizeof *own.bias);
    NAME(clip_together)(&own, &alone);
    team->wait();
    if (c->total)
        add_up(c->total, all_sums, size, sums, c->begun, team);
    if (c->bias)
        add_up(c->bias, all_sums + size, c->m, sums, c->bias_begun, team);
}

static void NAME(clip)(void *given, const struct team *team)
{
    if (apart(given))
        NAME(clip_apart)(given, team);
    else
        NAME(clip_together)(given, team);
}

/* Products between some lines of a matrix and others, features [first, end): found[i, j], with `line` apart. */
static inline __attribute__((always_inline)) void
NAME(between)(const float *const *a, const float *const *b, int64_t first, int64_t end,
              float found[PAIR_LINES][PAIR_COLUMNS])
{
    vector sums[PAIR_LINES][PAIR_COLUMNS] = {{{0}}};
    int64_t k = first;
    for (; k + LANES <= end; k += LANES) {
        vector lines[PAIR_LINES];
        for (int i = 0; i < PAIR_LINES; i++)
            lines[i] = load(a[i] + k);
        for (int j = 0; j < PAIR_COLUMNS; j++) {
            vector column = load(b[j] + k);
            for (int i = 0; i < PAIR_LINES; i++)
                sums[i][j] += lines[i] * column;
        }
    }
    for (int i = 0; i < PAIR_LINES; i++)
        for (int j = 0; j < PAIR_COLUMNS; j += 2)
            ADD_UP_TWO(sums[i][j], sums[i][j + 1], found[i] + j);
    for (; k < end; k++)
        for (int i = 0; i < PAIR_LINES; i++)
            for (int j = 0; j < PAIR_COLUMNS; j++)
                found[i][j] += a[i][k] * b[j][k];
}

/* Products of the places of a row with some of them, j and those after it: [places, PAIR_COLUMNS], of places
   that are not before j. */
static void NAME(columns_of_pairs)(const float *at, int64_t step, int64_t places, int64_t features, int64_t j,
                                   float *to)
{
    const float *a[PAIR_LINES], *b[PAIR_COLUMNS];
    float found[PAIR_LINES][PAIR_COLUMNS];
    for (int64_t l = 0; l < PAIR_COLUMNS; l++)
        b[l] = at + least(j + l, places - 1) * step;
    for (int64_t first = 0; first < features; first += 2 * DEPTH)
        for (int64_t i = j - j % PAIR_LINES; i < places; i += PAIR_LINES) {
            for (int64_t k = 0; k < PAIR_LINES; k++)
                a[k] = at + least(i + k, places - 1) * step;
            NAME(between)(a, b, first, least(first + 2 * DEPTH, features), found);
            for (int64_t k = 0; k < least(PAIR_LINES, places - i); k++)
                for (int64_t l = 0; l < PAIR_COLUMNS; l++) {
                    float *cell = to + (i + k) * PAIR_COLUMNS + l;
                    *cell = first ? *cell + found[k][l] : found[k][l];
                }
        }
}

static void NAME(pairs)(void *given, const struct team *team)
{
    const struct pairs *p = given;
    float *left = p->scratch + team->own * 2 * p->places * MOST_COLUMNS, *right = left + p->places * MOST_COLUMNS;
    const int64_t end = share(p->rows, team->own + 1, team->count);
    for (int64_t row = share(p->rows, team->own, team->count); row < end; row++) {
        double below = 0.0, on = 0.0, trace_left = 0.0, trace_right = 0.0;
        for (int64_t j = 0; j < p->places; j += PAIR_COLUMNS) {
            NAME(columns_of_pairs)(p->left + row * p->left_row, p->left_place, p->places, p->m, j, left);
            NAME(columns_of_pairs)(p->right + row * p->right_row, p->right_place, p->places, p->n, j, right);
            for (int64_t i = j; i < p->places; i++) {
                const float *a = left + i * PAIR_COLUMNS, *b = right + i * PAIR_COLUMNS;
                for (int64_t l = 0; l < least(PAIR_COLUMNS, i - j); l++)
                    below += (double)(a[l] * b[l]);
                if (i - j < PAIR_COLUMNS) {
                    on += (double)a[i - j] * b[i - j];
                    trace_left += a[i - j], trace_right += b[i - j];
                }
            }
        }
        const double found = on + 2.0 * below + p->margin * trace_left * trace_right;
        p->squares[row] = found < 0.0 ? 0.0 : found;
    }
}

/* Sums over places are those of `DEPTH` places each, `STRIP` numbers at a time, added up. */
static void NAME(affine)(void *given, const struct team *team)
{
    const struct affine *a = given;
    const int64_t width = a->width, end = share(a->rows, team->own + 1, team->count);
    for (int64_t row = share(a->rows, team->own, team->count); row < end; row++)
        for (int64_t first = 0; first < width; first += STRIP) {
            const int64_t count = least(width - first, STRIP);
            float *const gain = a->gain + row * width + first, *const bias = a->bias + row * width + first;
            memset(gain, 0, count * sizeof *gain);
            memset(bias, 0, count * sizeof *bias);
            for (int64_t t0 = 0; t0 < a->places; t0 += DEPTH) {
                float gains[STRIP] = {0}, biases[STRIP] = {0};
                for (int64_t t = t0; t < least(t0 + DEPTH, a->places); t++) {
                    const int64_t place = row * a->places + t;
                    const float *grad = a->grad + place * width + first, *x = a->x + place * width + first;
                    const float mean = a->mean[place], rstd = a->rstd[place];
                    for (int64_t k = 0; k < count; k++) {
                        gains[k] += grad[k] * ((x[k] - mean) * rstd);
                        biases[k] += grad[k];
                    }
                }
                for (int64_t k = 0; k < count; k++)
                    gain[k] += gains[k], bias[k] += biases[k];
            }
        }
}

static inline vector NAME(choose)(integers where, vector yes, vector no)
{
    return (vector)(((integers)yes & where) | ((integers)no & ~where));
}

/* The natural logarithm of normal numbers above 0: `logf` of the Cephes library (Moshier 1992). */
static inline vector NAME(logarithm)(vector x)
{
    integers bits = (integers)x;
    vector e = __builtin_convertvector((bits >> 23) - 126, vector);
    vector m = (vector)((bits & 0x7fffff) | 0x3f000000);
    integers small = m < all(0.707106781186547524f);
    e -= NAME(choose)(small, all(1.0f), all(0.0f));
    m = NAME(choose)(small, m + m, m) - 1.0f;
    vector z = m * m, y = 7.0376836292e-2f * m - 1.1514610310e-1f;
    y = y * m + 1.1676998740e-1f;
    y = y * m - 1.2420140846e-1f;
    y = y * m + 1.4249322787e-1f;
    y = y * m - 1.6668057665e-1f;
    y = y * m + 2.0000714765e-1f;
    y = y * m - 2.4999993993e-1f;
    y = y * m + 3.3333331174e-1f;
    y = y * m * z - 2.12194440e-4f * e - 0.5f * z;
    return m + y + 0.693359375f * e;
}

/* Makes normal numbers of random bits, int32, a pair of lines at a time: see `noise._narrow_gaussians`. Sine and
   cosine between -pi/4 and pi/4 as in Cephes. */
static inline __attribute__((always_inline)) void NAME(pair_of_gaussians)(float *first, float *second)
{
    vector radius = __builtin_convertvector(*(integers *)first, vector) * 0x1p-31f;
    vector angle = __builtin_convertvector(*(integers *)second, vector) * 0x1p-30f;
    radius = (vector)((integers)radius & 0x7fffffff) + 0x1p-31f;
    radius = ROOT(-2.0f * NAME(logarithm)(radius));
    /* angle, in quarters of a circle, is `quarter` and at most a half more or less. */
    integers quarter = __builtin_convertvector(angle + 2.5f, integers) - 2;
    vector x = (angle - __builtin_convertvector(quarter, vector)) * 1.57079632679489662f, z = x * x;
    vector sine = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * x + x;
    vector cosine = (2.443315711809948e-5f * z - 1.388731625493765e-3f) * z + 4.166664568298827e-2f;
    cosine = cosine * z * z - 0.5f * z + 1.0f;
    integers turned = (quarter & 1) == 1;
    vector up = NAME(choose)(turned, cosine, sine), along = NAME(choose)(turned, sine, cosine);
    up = (vector)((integers)up ^ ((quarter & 2) << 30));
    along = (vector)((integers)along ^ (((quarter + 1) & 2) << 30));
    store(first, radius * along);
    store(second, radius * up);
}

static void NAME(gaussians)(float *numbers, int64_t pairs, const struct team *team)
{
    const int64_t vectors = pairs / LANES;
    const int64_t end = share(vectors, team->own + 1, team->count) * LANES;
    int64_t i = share(vectors, team->own, team->count) * LANES;
    for (; i < end; i += LANES)
        NAME(pair_of_gaussians)(numbers + i, numbers + pairs + i);
    if (team->own + 1 == team->count && i < pairs) {
        const size_t rest = (pairs - i) * sizeof *numbers;
        float first[LANES] = {0}, second[LANES] = {0};
        memcpy(first, numbers + i, rest);
        memcpy(second, numbers + pairs + i, rest);
        NAME(pair_of_gaussians)(first, second);
        memcpy(numbers + i, first, rest);
        memcpy(numbers + pairs + i, second, rest);
    }
}

static void NAME(noise)(void *given, const struct team *team)
{
    const struct noise *n = given;
    NAME(gaussians)(n->drawn, n->pairs, team);
    team->wait();
    const float *drawn = n->drawn;
    for (int64_t part = 0; part < n->parts; drawn += n->counts[part++]) {
        float *sum = n->sums[part];
        const int64_t end = share(n->counts[part], team->own + 1, team->count);
        for (int64_t i = share(n->counts[part], team->own, team->count); i < end; i++) {
            const float noised = (sum[i] + n->sigma * drawn[i]) / n->normaliser;
            const float above = noised < -FLT_MAX ? -FLT_MAX : noised;
            sum[i] = above > FLT_MAX ? FLT_MAX : above;
        }
    }
}

static void NAME(add_places)(void *given, const struct team *team)
{
    const struct places *p = given;
    const int64_t end = share(p->rows, team->own + 1, team->count);
    for (int64_t row = share(p->rows, team->own, team->count); row < end; row++)
        for (int64_t first = 0; first < p->width; first += STRIP) {
            const int64_t count = least(p->width - first, STRIP);
            float *const sums = p->sums + row * p->width + first;
            memset(sums, 0, count * sizeof *sums);
            for (int64_t t0 = 0; t0 < p->places; t0 += DEPTH) {
                float some[STRIP] = {0};
                for (int64_t t = t0; t < least(t0 + DEPTH, p->places); t++) {
                    const float *from = p->from + row * p->row + t * p->place + first;
                    for (int64_t k = 0; k < count; k++)
                        some[k] += from[k];
                }
                for (int64_t k = 0; k < count; k++)
                    sums[k] += some[k];
            }
        }
}

#undef vector
#undef integers
#undef half
#undef doubles
#undef load
#undef store
#undef all
#undef slice
#undef WIDTH
#undef TILE
#undef DEPTH
#undef PLACES
#undef STRIP
#undef NAME
#undef LANES
#undef TILE_LINES
#undef TILE_VECTORS
#undef PAIR_LINES
#undef PAIR_COLUMNS
#undef ADD_UP_TWO
#undef ROOT
