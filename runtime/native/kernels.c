/* Gradients by unit on a CPU: see `kernels.py`, which says what is computed. float32, x86-64, GNU C.

   Here is what does not depend on the processor: threads, arguments, the choice among two sets of
   instructions. `kernels_body.h` is compiled for each of them. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <float.h>
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

/* Gradients left^T right by unit, clipped and added up. A row of the batch has `lines` x `places` places;
   left has m features at each, right what a kernel of a convolution sees from there, `channels` features at
   each of its own places: one for a plain product. Steps are in elements. */
struct clip {
    const float *left, *right;
    int64_t left_row, left_place, left_feature;
    int64_t right_row, right_line, right_place, right_feature;
    int64_t m, channels, lines, places;
    int64_t seen_lines, seen_places;                /* of right */
    int64_t kernel_v, kernel_h, down, across, high, wide, pad_v, pad_h;
    int64_t units;
    const int64_t *starts, *rows;                   /* rows[starts[u]] to rows[starts[u + 1]] are of unit u */
    const double *weights, *others, *bounds;        /* of rows; of units */
    double *squares, *factors;                      /* of units: what is found */
    double within;                                  /* what of a bound norms may reach */
    float *total, *bias;                            /* [runs, m, run], [m]; each may be null */
    int64_t begun, bias_begun;                      /* whether they are added to, or overwritten */
    float *scratch;
    int64_t threads;
};

enum { MOST_COLUMNS = 6 };

/* Squared norms of gradients left^T right of rows, from products between places. Features lie side by side. */
struct pairs {
    const float *left, *right;
    int64_t left_row, left_place, right_row, right_place;
    int64_t rows, places, m, n;
    double margin;                                  /* of the product of both traces, which is added */
    double *squares;                                /* [rows] */
    float *scratch;                                 /* [threads, 2, places, MOST_COLUMNS] */
    int64_t threads;
};

/* Gradients of a norm's gain, grad (x - mean) rstd, and of its bias, grad, summed over places by row. */
struct affine {
    const float *grad, *x, *mean, *rstd;            /* [rows, places, width] and [rows, places] */
    int64_t rows, places, width;
    float *gain, *bias;                             /* [rows, width] */
    int64_t threads;
};

/* [rows, places, width], to be summed over places. Features lie side by side. */
struct places {
    const float *from;
    int64_t row, place, rows, places, width;
    float *sums;                                    /* [rows, width] */
    int64_t threads;
};

/* Random bits, int32 [2, pairs], that become normal numbers, and parts of sums that these are added to in turn,
   times sigma, before all is divided by the normaliser. */
struct noise {
    float *drawn;
    int64_t pairs;
    float *const *sums;
    const int64_t *counts;
    int64_t parts;
    float sigma, normaliser;
    int64_t threads;
};

/* The numbers of a thread and of all, and where they wait for each other. */
struct team {
    int64_t own, count;
    void (*wait)(void);
};

typedef void work(void *given, const struct team *team);

/* As `unitwise.clip_factor`; bound: what norms may reach. */
static double clip_factor(double square, double bound)
{
    double norm = sqrt(square);
    if (!(norm > 0.0) || isinf(norm))
        return 0.0;
    return norm <= bound ? 1.0 : bound / norm;
}

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
static int64_t parts(int64_t whole, int64_t each) { return (whole + each - 1) / each; }
static int64_t share(int64_t whole, int64_t place, int64_t count) { return whole * place / count; }

/* Features of right that lie side by side wherever they are seen from, and how many runs of them there are. */
static int64_t run(const struct clip *c) { return c->wide == 1 ? c->kernel_h * c->channels : c->channels; }
static int64_t runs(const struct clip *c) { return c->wide == 1 ? c->kernel_v : c->kernel_v * c->kernel_h; }

/* Whether threads work on units of their own: where two gradients are in a core's cache, and units are many. */
static int apart(const struct clip *c)
{
    return c->threads > 1 && c->units >= 4 * c->threads && runs(c) * c->m * run(c) <= 3 << 16;
}

static int direct(const struct clip *c)
{
    const int dense = c->right_feature == 1 && (c->kernel_h == 1 || c->right_place == c->channels);
    return dense && !c->pad_v && !c->pad_h;
}

/* Numbers of right that are laid out for a row, padding included; 0 where it is read where it lies. */
static int64_t laid_numbers(const struct clip *c)
{
    if (direct(c))
        return 0;
    return (c->seen_lines + 2 * c->pad_v) * (c->seen_places + 2 * c->pad_h) * c->channels;
}

static void no_wait(void) {}

/* Adds some parts to a sum, or begins it by them: part i begins at i * step. */
static void add_up(float *total, const float *from, int64_t size, int64_t step, int64_t begun,
                   const struct team *team)
{
    const int64_t end = share(size, team->own + 1, team->count);
    for (int64_t i = share(size, team->own, team->count); i < end; i++) {
        float sum = begun ? total[i] : 0.0f;
        for (int64_t part = 0; part < team->count; part++)
            sum += from[part * step + i];
        total[i] = sum;
    }
}

#pragma GCC push_options
#pragma GCC target("avx2,fma")
/* Four numbers of each of four lines, times a weight, as four lines of them; returns the sum of the new lines. */
static inline __m128 turn(const float *from, int64_t from_line, float weight, float *to, int64_t to_line)
{
    __m128 lines[4];
    for (int i = 0; i < 4; i++)
        lines[i] = _mm_mul_ps(_mm_loadu_ps(from + i * from_line), _mm_set1_ps(weight));
    _MM_TRANSPOSE4_PS(lines[0], lines[1], lines[2], lines[3]);
    for (int i = 0; i < 4; i++)
        _mm_storeu_ps(to + i * to_line, lines[i]);
    return _mm_add_ps(_mm_add_ps(lines[0], lines[1]), _mm_add_ps(lines[2], lines[3]));
}

/* Copies some lines of right, features side by side, between zeros: [lines, places, channels], both padded. */
static void lay_out(const struct clip *c, const float *right, int64_t first, int64_t end, float *to)
{
    int64_t places = c->seen_places + 2 * c->pad_h;
    for (int64_t v = first; v < end; v++) {
        float *line = to + v * places * c->channels;
        const float *from = right + (v - c->pad_v) * c->right_line;
        int64_t inside = v >= c->pad_v && v < c->pad_v + c->seen_lines;
        int64_t left = inside ? c->pad_h : places, rest = places - left - c->seen_places;
        memset(line, 0, left * c->channels * sizeof *line);
        if (!inside)
            continue;
        line += left * c->channels;
        const int64_t turned = c->right_place == 1 ? c->seen_places / 4 * 4 : 0;
        int64_t k = 0;
        for (; k + 4 <= c->channels; k += 4)
            for (int64_t h = 0; h < turned; h += 4)
                turn(from + h + k * c->right_feature, c->right_feature, 1.0f, line + h * c->channels + k, c->channels);
        for (int64_t h = 0; h < c->seen_places; h++)
            for (int64_t rest_k = h < turned ? k : 0; rest_k < c->channels; rest_k++)
                line[h * c->channels + rest_k] = from[h * c->right_place + rest_k * c->right_feature];
        memset(line + c->seen_places * c->channels, 0, rest * c->channels * sizeof *line);
    }
}

static inline void add_up_two(__m256 a, __m256 b, float *to)
{
    __m256 two = _mm256_hadd_ps(a, b), four = _mm256_hadd_ps(two, two);
    __m128 found = _mm_add_ps(_mm256_castps256_ps128(four), _mm256_extractf128_ps(four, 1));
    _mm_storel_pi((__m64 *)to, found);
}

#define NAME(name) name##_avx2
#define LANES 8
#define TILE_LINES 4
#define TILE_VECTORS 3
#define PAIR_LINES 2
#define PAIR_COLUMNS 4
#define ROOT(values) ((vector)_mm256_sqrt_ps((__m256)(values)))
#define ADD_UP_TWO(a, b, to) add_up_two((__m256)(a), (__m256)(b), to)
#include "kernels_body.h"
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,fma")
static inline __m256 halves(__m512 value)
{
    return _mm256_add_ps(_mm512_castps512_ps256(value), _mm512_extractf32x8_ps(value, 1));
}

#define NAME(name) name##_avx512
#define LANES 16
#define TILE_LINES 12
#define TILE_VECTORS 2
#define PAIR_LINES 4
#define PAIR_COLUMNS 6
#define ROOT(values) ((vector)_mm512_sqrt_ps((__m512)(values)))
#define ADD_UP_TWO(a, b, to) add_up_two(halves((__m512)(a)), halves((__m512)(b)), to)
#include "kernels_body.h"
#pragma GCC pop_options

/* Threads are those of the OpenMP runtime that torch has loaded: others would compete with them. */
static void (*omp_parallel)(void (*)(void *), void *, unsigned, unsigned);
static void (*omp_barrier)(void);
static int (*omp_number)(void), (*omp_count)(void);
static int wide;

struct task {
    work *work;
    void *given;
};

static void in_team(void *task)
{
    struct team team = {omp_number(), omp_count(), omp_barrier};
    ((struct task *)task)->work(((struct task *)task)->given, &team);
}

static void set_to(work *work, void *given, int64_t threads)
{
    struct task task = {work, given};
    struct team team = {0, 1, no_wait};
    if (threads > 1)
        omp_parallel(in_team, &task, (unsigned)threads, 0);
    else
        work(given, &team);
}

/* Returns the number of lanes of the instructions that will be used, 0 where there are none or no threads.
   most: of lanes. */
int64_t prepare(int64_t most)
{
    *(void **)&omp_parallel = dlsym(RTLD_DEFAULT, "GOMP_parallel");
    *(void **)&omp_barrier = dlsym(RTLD_DEFAULT, "GOMP_barrier");
    *(void **)&omp_number = dlsym(RTLD_DEFAULT, "omp_get_thread_num");
    *(void **)&omp_count = dlsym(RTLD_DEFAULT, "omp_get_num_threads");
    if (!omp_parallel || !omp_barrier || !omp_number || !omp_count)
        return 0;
    wide = most >= 16 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq");
    if (wide)
        return 16;
    return most >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? 8 : 0;
}

/* Whether arguments are as large as the caller says, who may be of another version. */
int64_t takes(const int64_t *sizes, int64_t count)
{
    const int64_t own[] = {sizeof(struct clip), sizeof(struct pairs), sizeof(struct affine), sizeof(struct places),
                           sizeof(struct noise)};
    return count * sizeof *own == sizeof own && !memcmp(sizes, own, sizeof own);
}

int64_t clip_scratch(const struct clip *clip)
{
    return wide ? clip_scratch_avx512(clip) : clip_scratch_avx2(clip);
}

void clip(struct clip *clip) { set_to(wide ? clip_avx512 : clip_avx2, clip, clip->threads); }

int64_t pair_scratch(const struct pairs *pairs) { return pairs->threads * 2 * pairs->places * MOST_COLUMNS; }

void pair_squares(struct pairs *pairs) { set_to(wide ? pairs_avx512 : pairs_avx2, pairs, pairs->threads); }

void affine(struct affine *affine) { set_to(wide ? affine_avx512 : affine_avx2, affine, affine->threads); }

void add_places(struct places *places)
{
    set_to(wide ? add_places_avx512 : add_places_avx2, places, places->threads);
}

void noise(struct noise *noise) { set_to(wide ? noise_avx512 : noise_avx2, noise, noise->threads); }
