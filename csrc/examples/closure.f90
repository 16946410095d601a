! A macro solver in Fortran: the points and values of closure.c. Usage: closure_fortran CASE.yaml CHANNEL
program closure
  use neuroscale
  implicit none
  integer(c_int64_t), target :: ids(3) = [0_c_int64_t, 1_c_int64_t, 2_c_int64_t]
  real(c_double), target :: xy(2, 3) = reshape([0d0, 0d0, 1d0, 0d0, 2d0, 0d0], [2, 3]), flux(2, 3)
  real(c_double), target :: gradient(2, 3) = reshape([1d0, 0d0, 0d0, 1d0, 0.5d0, -0.5d0], [2, 3])
  real(c_double), target :: temperature(3) = [293.15d0, 300d0, 310d0]
  type(c_ptr) :: s
  character(len=256) :: path, channel
  call get_command_argument(1, path)
  call get_command_argument(2, channel)
  s = opened(trim(path), trim(channel))
  call check(s, nsc_points(s, 3_c_size_t, ids, 2_c_int, xy, c_null_ptr))
  call check(s, declare(nsc_input, s, 'gradient', 'x y', 'K/m'))
  call check(s, declare(nsc_input, s, 'temperature', '', 'K'))
  call check(s, declare(nsc_output, s, 'flux', 'x y', 'W/m2'))
  call check(s, nsc_connect(s))
  call check(s, exchange(s, 0.1d0, 0.1d0, 0, [c_loc(gradient), c_loc(temperature)], [c_loc(flux)]))
  call check(s, nsc_commit(s))
  call check(s, nsc_finish(s))
  print '(2es25.17)', flux
  call nsc_close(s)
end program closure
