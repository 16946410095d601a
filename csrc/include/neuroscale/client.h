/* SPDX-License-Identifier: Apache-2.0
 *
 * The client of neuroscale-couple: how a macro solver in C, C++ or Fortran reaches the service that answers its points.
 *
 *     nsc_session* s = NULL;
 *     char why[1024];
 *     if (nsc_open("neuroscale.yaml", "socket", NULL, &s, why, sizeof why)) stop(why);
 *     nsc_points(s, n, ids, 2, coordinates, volumes);
 *     nsc_input(s, "gradient", 2, (const char*[]){"x", "y"}, "K/m");
 *     nsc_output(s, "flux", 2, (const char*[]){"x", "y"}, "W/m2");
 *     if (nsc_connect(s)) stop(nsc_last_error(s));
 *     nsc_answer answer = {sizeof answer, (double* const[]){flux}, tangent, error, source, reason, 0};
 *     if (nsc_exchange(s, time, dt, iteration, (const double* const[]){gradient}, &answer)) stop(nsc_last_error(s));
 *     nsc_commit(s);
 *     nsc_finish(s);
 *     nsc_close(&s);
 *
 * Rules
 *   Arrays are row-major: float64 [point][component]. The caller owns all memory; nothing is kept but during the call.
 *   connect, exchange, commit, rollback and finish are collective over the ranks of a session: each of them calls, with
 *   the same time, step, iteration and totals. A wrong value on one rank is an error on all of them.
 *   Every function returns an nsc_status, 0 if all went well. Nothing throws, prints, exits or aborts across this
 * border. A session is used by one thread at a time; several sessions of a process are independent. No function blocks
 * for ever: a service that dies is found out within seconds, a silent one after `timeout`.
 */
#ifndef NEUROSCALE_CLIENT_H
#define NEUROSCALE_CLIENT_H

#include <stddef.h>
#include <stdint.h>

#define NSC_CLIENT_VERSION_MAJOR 1
#define NSC_CLIENT_VERSION_MINOR 0

#if defined(__GNUC__)
#define NSC_API __attribute__((visibility("default")))
#else
#define NSC_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What a call came to. After any of these but NSC_OK, NSC_ERROR_ARGUMENT and NSC_ERROR_INPUT the session is of no more
 * use: only nsc_last_error and nsc_close do anything, all else returns the same error again. */
typedef enum nsc_status {
    NSC_OK = 0,
    NSC_ERROR_ARGUMENT = 1, /* a wrong argument or a call out of order; nothing was sent */
    NSC_ERROR_INPUT = 2,    /* the service refused values (NaN, ranks that differ); on all ranks; the session goes on */
    NSC_ERROR_CHANNEL = 3,  /* the channel is unknown, or the service could not be started or reached */
    NSC_ERROR_SERVICE = 4,  /* the service failed and said why: configuration, model, fine solver ... */
    NSC_ERROR_LOST = 5,     /* the service went away without a word */
    NSC_ERROR_TIMEOUT = 6,  /* no answer within `timeout` */
    NSC_ERROR_PROTOCOL = 7, /* what came is not a message of this version of the wire format */
    NSC_ERROR_MEMORY = 8,   /* no memory left */
    NSC_ERROR_INTERNAL = 9  /* a mistake in this library */
} nsc_status;

/* Who answered a point (nsc_answer.source). */
enum { NSC_SOURCE_SURROGATE_COARSE = 0, NSC_SOURCE_SURROGATE_FINE = 1, NSC_SOURCE_FINE = 2 };

typedef struct nsc_session nsc_session;

/* Optional settings of nsc_open; zero (NULL) means the default. Start from nsc_default_options(). */
typedef struct nsc_options {
    size_t struct_size;  /* sizeof(nsc_options) */
    int rank;            /* this process among the solver's ranks that share the service, 0-based */
    int ranks;           /* their number; 0: one */
    const char* address; /* socket: path of the socket, the same on all ranks. NULL: found from configuration and job */
    const char* command; /* program that is the service. NULL: $NEUROSCALE_COUPLE, else neuroscale-couple on PATH;
                            embedded: the Python interpreter, NULL: $NEUROSCALE_PYTHON, else python3 on PATH */
    const char* set;     /* keys of the configuration to replace, KEY=VALUE, one a line, or NULL */
    int resume;          /* go on from the service's last checkpoint */
    int no_start;        /* socket: only connect to a service that runs already, start none */
    double start_timeout; /* seconds for the service to start; 0: 120 */
    double timeout;       /* seconds for one answer; 0: 3600. The longer of both for nsc_open and nsc_connect */
    int mpi_comm;         /* mpi, embedded: MPI_Comm_c2f of the communicator of the solver's ranks, if has_mpi_comm */
    int has_mpi_comm;     /* 0: MPI_COMM_WORLD */
} nsc_options;

/* Where an answer goes, and which parts of it are wanted: parts that are NULL are not even sent. */
typedef struct nsc_answer {
    size_t struct_size;     /* sizeof(nsc_answer) */
    double* const* outputs; /* one array [n][components] per declared output, in the order of declaration */
    double* tangent;        /* [n][all outputs' components][all inputs' components], d output / d input; or NULL */
    double* error;          /* [n] estimated relative error, 0 for fine answers; or NULL */
    uint8_t* source;        /* [n] who answered, NSC_SOURCE_...; or NULL */
    uint8_t* reason;        /* [n] why the surrogate was refused, 0: it was not, see nsc_reason_text; or NULL */
    int64_t model_version;  /* out: version of the surrogate that answers now; -1: there is none */
} nsc_answer;

/* ---- life of a session ---- */

NSC_API nsc_options nsc_default_options(void);

/* Make a session and reach, or start, the service.
 * configuration: path of the neuroscale.yaml; channel: "socket", "mpi", "mpmd", "embedded" or
 * "precice"; options: or NULL
 * session: out, NULL after an error; why: out, text of an error, why_size bytes at most with its end; or NULL
 * Over several ranks rank 0 starts the service and the others join it; embedded: each has its own, and all of
 * them are one run. Collective: mpi, mpmd, embedded yes, else no */
NSC_API nsc_status nsc_open(const char* configuration, const char* channel, const nsc_options* options,
                            nsc_session** session, char* why, size_t why_size);

/* For channel "mpmd", where the service is a program of the solver's own MPI job:
 *     mpirun -n N solver : -n 1 neuroscale-couple serve CASE.yaml --client
 * Divide MPI_COMM_WORLD into solver and service, before either uses it for anything else; MPI must be running.
 * comm: out, MPI_Comm_c2f of the communicator of the solver's ranks, which stays the library's; why: as in nsc_open
 * Collective: yes, over MPI_COMM_WORLD */
NSC_API nsc_status nsc_split_world(int* comm, char* why, size_t why_size);

/* Send points and fields; the service builds itself and checks that the fields are those of its micro problem.
 * Returns within `start_timeout` plus the time the service takes to load its model. Collective: yes */
NSC_API nsc_status nsc_connect(nsc_session* session);

/* End the run in order: the service writes what is to be written. Collective: yes */
NSC_API nsc_status nsc_finish(nsc_session* session);

/* Free the session and set *session to NULL. Without nsc_finish before, the service ends the run as a failed one.
 * A service that this rank started is waited for (a few seconds) and then ended: no process is left behind. */
NSC_API void nsc_close(nsc_session** session);

/* ---- what is declared between nsc_open and nsc_connect ---- */

/* The points of this rank; n may be 0.
 * ids: int64 [n], unique over all ranks; coordinates: [n][dimension] m; volumes: [n] or NULL: all 1 */
NSC_API nsc_status nsc_points(nsc_session* session, size_t n, const int64_t* ids, int dimension,
                              const double* coordinates, const double* volumes);

/* What distinguishes the micro problems of the points.
 * type: 'd' float64, 'i' int64, 'b' uint8; rank, shape: dimensions of one point's value, without the points
 * values: [n][shape...], copied */
NSC_API nsc_status nsc_parameter(nsc_session* session, const char* name, char type, int rank, const size_t* shape,
                                 const void* values);

/* A field that the solver sends, or wants. All inputs of the micro problem must be declared, outputs as wanted; names
 * of components as the micro problem has them, in any order. A scalar has one component, named "" (or NULL, 1).
 * unit: converted where it measures the same, e.g. Pa for a problem in MPa. */
NSC_API nsc_status nsc_input(nsc_session* session, const char* name, int components, const char* const* names,
                             const char* unit);
NSC_API nsc_status nsc_output(nsc_session* session, const char* name, int components, const char* const* names,
                              const char* unit);

/* ---- every iteration, every window ---- */

/* Prescribe the sum over all points of volume * output for the next exchange, e.g. "flux.x". The same on all ranks. */
NSC_API nsc_status nsc_total(nsc_session* session, const char* column, double value);

/* Answer all points; call as often as the solver iterates.
 * iteration: 0 for the first of a window; inputs: one array [n][components] per declared input, in that order
 * answer: filled in where its pointers are not NULL; of no meaning after an error. Collective: yes */
NSC_API nsc_status nsc_exchange(nsc_session* session, double time, double dt, int iteration,
                                const double* const* inputs, nsc_answer* answer);

/* The window has converged. Collective: yes */
NSC_API nsc_status nsc_commit(nsc_session* session);

/* Start the window afresh, all points included. Collective: yes */
NSC_API nsc_status nsc_rollback(nsc_session* session);

/* For a solver that iterates over windows of several steps, or over micro problems with a state: go on from where the
 * last exchange has ended; or back to the window's start, points staying with whom they reached. Collective: yes */
NSC_API nsc_status nsc_next_step(nsc_session* session);
NSC_API nsc_status nsc_repeat(nsc_session* session);

/* ---- restart ---- */

/* Keep count numbers of this rank with the checkpoint of the next nsc_commit. */
NSC_API nsc_status nsc_keep(nsc_session* session, const char* name, size_t count, const double* values);

/* After nsc_connect: committed windows of the run that this one resumes; -1: it resumes none (or no session). */
NSC_API int64_t nsc_resumed(const nsc_session* session);

/* After nsc_connect of a resumed run: numbers that nsc_keep gave to the last checkpoint.
 * values: out, or NULL to ask for the count alone; count: in, room in values; out, how many there are */
NSC_API nsc_status nsc_kept(const nsc_session* session, const char* name, size_t* count, double* values);

/* ---- questions ---- */

/* Text of the last error of this session, "" if there was none; valid until the next call. Never NULL. */
NSC_API const char* nsc_last_error(const nsc_session* session);

/* Whether the session can still exchange: connected and not broken. */
NSC_API int nsc_usable(const nsc_session* session);

/* Process id of the service that this rank started; 0: none. */
NSC_API int64_t nsc_service_pid(const nsc_session* session);

/* A status, or a reason of nsc_answer, as a sentence. Never NULL. */
NSC_API const char* nsc_status_text(int status);
NSC_API const char* nsc_reason_text(int reason);

/* Version of this library, "1.0", and of the wire format that it speaks. */
NSC_API const char* nsc_version(void);
NSC_API int nsc_wire_version(void);

#ifdef __cplusplus
}
#endif

#endif
